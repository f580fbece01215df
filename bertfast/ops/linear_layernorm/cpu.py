"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._native import dropout, sequences
from .._native import supports as supports
from .._weights import operands, unpacked


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float,
    p: float, seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`; only the first result unless `save`."""
    x, residual = extension.with_dense_rows(x), extension.with_dense_rows(residual)
    bias, ln_weight, ln_bias = bias.contiguous(), ln_weight.contiguous(), ln_bias.contiguous()
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    example_ids = None if example_ids is None else example_ids.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    out = residual.new_empty(rows, n)
    z = torch.empty_like(out) if save else None
    mean, rstd = extension.statistics(x, rows, save), extension.statistics(x, rows, save)
    weights, strides, weight_dtype = operands(weight)
    extension.launch(
        "linear_layernorm_fwd", x, x=x.data_ptr(),
        weight=weights[0].data_ptr(), weight_stride=strides[0], weight_dtype=weight_dtype, bias=bias.data_ptr(),
        residual=residual.data_ptr(), ln_weight=ln_weight.data_ptr(), ln_bias=ln_bias.data_ptr(), out=out.data_ptr(),
        z=pointer(z), mean=pointer(mean), rstd=pointer(rstd), rows=rows, n=n, k=k, x_stride=x.stride(0),
        residual_stride=residual.stride(0), eps=eps, ln_dtype=extension.DTYPE_CODES[residual.dtype],
        cu_seqlens=pointer(cu_seqlens), sequences=sequences(cu_seqlens), dropout=dropout(p, seed, example_ids),
    )  # fmt: skip
    return out, z, mean, rstd


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, ln_weight: Tensor, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`: gradients of x, weight, bias, residual, ln_weight, ln_bias."""
    dout, z, ln_weight = extension.contiguous(dout, z, ln_weight)
    cu_seqlens, example_ids = extension.contiguous(cu_seqlens, example_ids)
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(unpacked(weight))
    (rows, k), n = x.shape, weight.shape[0]
    dx, dweight, dbias = extension.gradients(x, ((rows, k), (n, k), (n,)), needs[:3])
    dresidual, dln_weight = torch.empty_like(z), torch.empty_like(ln_weight)
    dln_bias = torch.empty_like(ln_weight)
    extension.launch(
        "linear_layernorm_bwd", x, dout=dout.data_ptr(), x=x.data_ptr(), weight=weight.data_ptr(), z=z.data_ptr(),
        mean=mean.data_ptr(), rstd=rstd.data_ptr(), ln_weight=ln_weight.data_ptr(), dx=pointer(dx),
        dweight=pointer(dweight), dbias=pointer(dbias), dresidual=dresidual.data_ptr(), pre=0,
        dln_weight=dln_weight.data_ptr(), dln_bias=dln_bias.data_ptr(), rows=rows, n=n, k=k, x_stride=x.stride(0),
        weight_stride=weight.stride(0), ln_dtype=extension.DTYPE_CODES[z.dtype], cu_seqlens=pointer(cu_seqlens),
        sequences=sequences(cu_seqlens), dropout=dropout(p, seed, example_ids),
    )  # fmt: skip
    return dx, dweight, dbias, dresidual, dln_weight, dln_bias
