"""Triton form: bias and GELU inside the product; backward with the derivative as the tiles are loaded."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .. import _gemm_triton
from .._autograd import linear_gradients, thaw
from .._gelu_triton import gelu_of
from .._triton import refuses


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the Triton form computes this, else the reason."""
    return refuses(x, product=True)


def forward(x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> tuple[Tensor, Tensor | None]:
    """See `bertfast.ops.linear_gelu`; the second result is None unless `save`. One launch."""
    return _gemm_triton.linear(x, [thaw(weight)], [bias], gelu=True, save=save)


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, pre: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.linear_gelu`: gradients of x, weight, bias. One launch."""
    return _gemm_triton.linear_backward(dout, x, [thaw(weight)], needs, pre)


def _forward_by_matmul(
    x: Tensor, weight: Tensor, bias: Tensor, save: bool
) -> tuple[Tensor, Tensor | None]:
    pre = torch.addmm(bias, x, thaw(weight).t())
    return gelu_of(pre), pre if save else None


def _backward_by_matmul(
    dout: Tensor, x: Tensor, weight: Tensor, pre: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    return linear_gradients(gelu_of(pre, dout), x, thaw(weight), needs)


# torch's own product, then one kernel: the second candidate for the measured dispatch
matmul = SimpleNamespace(
    forward=_forward_by_matmul, backward=_backward_by_matmul, supports=supports
)
