"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._native import supports as supports
from .._weights import operands, unpacked


def forward(x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> tuple[Tensor, Tensor | None]:
    """See `bertfast.ops.linear_gelu`; the second result is None unless `save`."""
    x, bias = extension.with_dense_rows(x), bias.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    out = x.new_empty(rows, n)
    pre = torch.empty_like(out) if save else None
    weights, strides, weight_dtype = operands(weight)
    extension.launch(
        "linear_gelu_fwd", x, x=x.data_ptr(),
        weight=weights[0].data_ptr(), weight_stride=strides[0], weight_dtype=weight_dtype,
        bias=bias.data_ptr(), out=out.data_ptr(), pre=pointer(pre), rows=rows, n=n, k=k, x_stride=x.stride(0),
    )  # fmt: skip
    return out, pre


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, pre: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.linear_gelu`: gradients of x, weight, bias."""
    dout, pre = extension.contiguous(dout, pre)
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(unpacked(weight))
    (rows, k), n = x.shape, weight.shape[0]
    dx, dweight, dbias = grads = extension.gradients(x, ((rows, k), (n, k), (n,)), needs)
    extension.launch(
        "linear_gelu_bwd", x, dout=dout.data_ptr(), x=x.data_ptr(), weight=weight.data_ptr(), pre=pre.data_ptr(),
        dx=pointer(dx), dweight=pointer(dweight), dbias=pointer(dbias), rows=rows, n=n, k=k, x_stride=x.stride(0),
        weight_stride=weight.stride(0),
    )  # fmt: skip
    return grads
