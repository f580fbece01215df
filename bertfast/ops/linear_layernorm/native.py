"""Launcher of the native forms, C++ and CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._formulas import thaw
from .._philox import keep_scale, threshold
from ..packed import buffer_of


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(x)


def _cuda_supports(direction: str, x: Tensor, *_) -> str | None:
    return extension.refuses_cuda(x)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float,
    p: float, seed: Tensor | None, cu_seqlens: Tensor | None, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`; only the first result unless `save`."""
    x, residual = extension.with_dense_rows(x), extension.with_dense_rows(residual)
    bias, ln_weight, ln_bias = bias.contiguous(), ln_weight.contiguous(), ln_bias.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    out = residual.new_empty(rows, n)
    z = torch.empty_like(out) if save else None
    mean, rstd = extension.statistics(x, rows, save), extension.statistics(x, rows, save)
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    packed = buffer_of(weight)
    extension.launch(
        "linear_layernorm_fwd", x,
        x.data_ptr(), packed.data_ptr(), bias.data_ptr(), residual.data_ptr(), ln_weight.data_ptr(), ln_bias.data_ptr(),
        out.data_ptr(), pointer(z), pointer(mean), pointer(rstd), pointer(cu_seqlens), rows, n, k, x.stride(0),
        residual.stride(0), 0 if cu_seqlens is None else cu_seqlens.numel() - 1, eps, pointer(seed), threshold(p),
        keep_scale(p), extension.DTYPE_CODES[residual.dtype],
    )  # fmt: skip
    return out, z, mean, rstd


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, ln_weight: Tensor, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`: gradients of x, weight, bias, residual, ln_weight, ln_bias."""
    dout, z, ln_weight = extension.contiguous(dout, z, ln_weight)
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(thaw(weight))
    (rows, k), n = x.shape, weight.shape[0]
    dx, dweight, dbias = extension.gradients(x, ((rows, k), (n, k), (n,)), needs[:3])
    dresidual, dln_weight, dln_bias = (
        torch.empty_like(z),
        torch.empty_like(ln_weight),
        torch.empty_like(ln_weight),
    )
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    extension.launch(
        "linear_layernorm_bwd", x,
        dout.data_ptr(), x.data_ptr(), weight.data_ptr(), z.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        ln_weight.data_ptr(), pointer(dx), pointer(dweight), pointer(dbias), dresidual.data_ptr(),
        dln_weight.data_ptr(), dln_bias.data_ptr(), pointer(cu_seqlens), rows, n, k, x.stride(0), weight.stride(0),
        0 if cu_seqlens is None else cu_seqlens.numel() - 1, pointer(seed), threshold(p), keep_scale(p),
        extension.DTYPE_CODES[z.dtype],
    )  # fmt: skip
    return dx, dweight, dbias, dresidual, dln_weight, dln_bias


cuda = SimpleNamespace(forward=forward, backward=backward, supports=_cuda_supports)
