"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._native import supports as supports
from .._weights import operands, unpacked


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.gelu_layernorm`; only the first result unless `save`."""
    x = extension.with_dense_rows(x)
    bias, ln_weight, ln_bias = bias.contiguous(), ln_weight.contiguous(), ln_bias.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    out = ln_weight.new_empty(rows, n)
    pre = x.new_empty(rows, n) if save else None
    mean, rstd = extension.statistics(x, rows, save), extension.statistics(x, rows, save)
    weights, strides, weight_dtype = operands(weight)
    extension.launch(
        "gelu_layernorm_fwd", x, x=x.data_ptr(),
        weight=weights[0].data_ptr(), weight_stride=strides[0], weight_dtype=weight_dtype, bias=bias.data_ptr(),
        ln_weight=ln_weight.data_ptr(), ln_bias=ln_bias.data_ptr(), out=out.data_ptr(), pre=pointer(pre),
        mean=pointer(mean), rstd=pointer(rstd), rows=rows, n=n, k=k, x_stride=x.stride(0), eps=eps,
        ln_dtype=extension.DTYPE_CODES[ln_weight.dtype],
    )  # fmt: skip
    return out, pre, mean, rstd


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, pre: Tensor, mean: Tensor, rstd: Tensor, ln_weight: Tensor,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.gelu_layernorm`: gradients of x, weight, bias, ln_weight, ln_bias."""
    dout, pre, ln_weight = extension.contiguous(dout, pre, ln_weight)
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(unpacked(weight))
    (rows, k), n = x.shape, weight.shape[0]
    dx, dweight, dbias = extension.gradients(x, ((rows, k), (n, k), (n,)), needs[:3])
    dln_weight, dln_bias = torch.empty_like(ln_weight), torch.empty_like(ln_weight)
    extension.launch(
        "gelu_layernorm_bwd", x, dout=dout.data_ptr(), x=x.data_ptr(), weight=weight.data_ptr(), pre=pre.data_ptr(),
        mean=mean.data_ptr(), rstd=rstd.data_ptr(), ln_weight=ln_weight.data_ptr(), dx=pointer(dx),
        dweight=pointer(dweight), dbias=pointer(dbias), dln_weight=dln_weight.data_ptr(), dln_bias=dln_bias.data_ptr(),
        rows=rows, n=n, k=k, x_stride=x.stride(0), weight_stride=weight.stride(0),
        ln_dtype=extension.DTYPE_CODES[ln_weight.dtype],
    )  # fmt: skip
    return dx, dweight, dbias, dln_weight, dln_bias
