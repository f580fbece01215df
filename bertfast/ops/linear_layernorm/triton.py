"""Launcher of the Triton form: the product with its bias, then dropout, the residual and LN in one kernel.

`matmul` is a second candidate for the measured dispatch: the same kernels around torch's own products.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor
from torch.nn import functional as F

from .. import _gemm_triton, _layernorm_triton, _triton
from .._autograd import linear_gradients, thaw
from .._layernorm_triton import dense_rows, dropout_of


def supports(direction: str, *args) -> str | None:
    """None where the Triton form computes this, else the reason."""
    x, gain = args[0], args[6 if direction == "backward" else 4]
    return _triton.refuses(x, product=True) or _layernorm_triton.refuses(gain.shape[0])


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float,
    p: float, seed: Tensor | None, cu_seqlens: Tensor | None, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`; only the first result unless `save`."""
    product, _ = _gemm_triton.linear(x, [thaw(weight)], [bias])
    return _normalized(product, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, save)


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, ln_weight: Tensor, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`: gradients of x, weight, bias, residual, ln_weight, ln_bias."""
    dropout = dropout_of(p, seed, cu_seqlens)
    norm = _layernorm_triton.backward(dout, z, mean, rstd, ln_weight, x.dtype, dropout=dropout)
    wanted = (needs[0], needs[1], False)
    dx, dweight, _ = _gemm_triton.linear_backward(norm.dproduct, x, [thaw(weight)], wanted)
    return dx, dweight, norm.dbias, norm.dz, norm.dgain, norm.dshift


def _normalized(product, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, save):
    """(out, z, mean, rstd) from the linear's result, which may be written over."""
    return _layernorm_triton.forward(
        product, ln_weight, ln_bias, eps, save,
        residual=dense_rows(residual), dropout=dropout_of(p, seed, cu_seqlens),
    )  # fmt: skip


def _matmul_forward(x, weight, bias, residual, *rest):
    product = F.linear(x, thaw(weight), bias).contiguous()
    return _normalized(product, residual, *rest)


def _matmul_backward(dout, x, weight, z, mean, rstd, ln_weight, p, seed, cu_seqlens, needs):
    dropout = dropout_of(p, seed, cu_seqlens)
    norm = _layernorm_triton.backward(dout, z, mean, rstd, ln_weight, x.dtype, dropout=dropout)
    wanted = (needs[0], needs[1], False)
    dx, dweight, _ = linear_gradients(norm.dproduct, x, thaw(weight), wanted)
    return dx, dweight, norm.dbias, norm.dz, norm.dgain, norm.dshift


matmul = SimpleNamespace(forward=_matmul_forward, backward=_matmul_backward, supports=supports)
