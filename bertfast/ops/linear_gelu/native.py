"""Launcher of the native forms, C++ and CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._formulas import thaw
from ..packed import buffer_of


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(x)


def _cuda_supports(direction: str, x: Tensor, *_) -> str | None:
    return extension.refuses_cuda(x)


def forward(x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> tuple[Tensor, Tensor | None]:
    """See `bertfast.ops.linear_gelu`; the second result is None unless `save`."""
    x, bias = extension.with_dense_rows(x), bias.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    out = x.new_empty(rows, n)
    pre = torch.empty_like(out) if save else None
    packed = buffer_of(weight)
    extension.launch(
        "linear_gelu_fwd", x,
        x.data_ptr(), packed.data_ptr(), bias.data_ptr(), out.data_ptr(), pointer(pre), rows, n, k, x.stride(0),
    )  # fmt: skip
    return out, pre


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, pre: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.linear_gelu`: gradients of x, weight, bias."""
    dout, pre = extension.contiguous(dout, pre)
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(thaw(weight))
    (rows, k), n = x.shape, weight.shape[0]
    dx, dweight, dbias = grads = extension.gradients(x, ((rows, k), (n, k), (n,)), needs)
    extension.launch(
        "linear_gelu_bwd", x,
        dout.data_ptr(), x.data_ptr(), weight.data_ptr(), pre.data_ptr(), pointer(dx), pointer(dweight), pointer(dbias),
        rows, n, k, x.stride(0), weight.stride(0),
    )  # fmt: skip
    return grads


cuda = SimpleNamespace(forward=forward, backward=backward, supports=_cuda_supports)
