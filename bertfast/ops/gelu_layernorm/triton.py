"""Triton form: the product, then GELU and LN in one kernel; backward from the pre-activation.

`matmul` is a second candidate for the measured dispatch: the same kernels around torch's own products.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .. import _gemm_triton, _layernorm_triton, _triton
from .._autograd import linear_gradients, thaw


def supports(direction: str, *args) -> str | None:
    """None where the Triton form computes this, else the reason."""
    x, ln_weight = args[0], args[6 if direction == "backward" else 3]
    return _triton.refuses(x, product=True) or _layernorm_triton.refuses(ln_weight.shape[0])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `bertfast.ops.gelu_layernorm`; only the first result unless `save`. Two launches."""
    pre, _ = _gemm_triton.linear(x, [thaw(weight)], [bias])
    return _normalized(pre, ln_weight, ln_bias, eps, save)


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    mean: Tensor,
    rstd: Tensor,
    ln_weight: Tensor,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.gelu_layernorm`: gradients of x, weight, bias, ln_weight, ln_bias. Three launches."""
    return _backward(_gemm_triton_gradients, dout, x, weight, pre, mean, rstd, ln_weight, needs)


def _gemm_triton_gradients(dpre: Tensor, x: Tensor, weight: Tensor, needs: tuple) -> tuple:
    return _gemm_triton.linear_backward(dpre, x, [weight], needs)


def _backward(product, dout, x, weight, pre, mean, rstd, ln_weight, needs):
    norm = _layernorm_triton.backward(dout, pre, mean, rstd, ln_weight, x.dtype, gelu=True)
    dx, dweight, _ = product(norm.dproduct, x, thaw(weight), (needs[0], needs[1], False))
    return dx, dweight, norm.dbias, norm.dgain, norm.dshift


def _normalized(pre, ln_weight, ln_bias, eps, save):
    """(out, pre, mean, rstd) from the linear's result, which may be written over unless `save`."""
    out, _, mean, rstd = _layernorm_triton.forward(pre, ln_weight, ln_bias, eps, save, gelu=True)
    return out, pre if save else None, mean, rstd


def _matmul_forward(x, weight, bias, ln_weight, ln_bias, eps, save):
    pre = torch.addmm(bias, x, thaw(weight).t())
    return _normalized(pre, ln_weight, ln_bias, eps, save)


def _matmul_backward(*args):
    return _backward(linear_gradients, *args)


matmul = SimpleNamespace(forward=_matmul_forward, backward=_matmul_backward, supports=supports)
