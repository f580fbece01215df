"""The backend triton: bias and GELU inside the product; backward with the derivative as the tiles are loaded."""

from __future__ import annotations

from torch import Tensor

from .._linear_triton import PRODUCTS as PRODUCTS
from .._linear_triton import linear, linear_backward
from .._linear_triton import supports as supports


def forward(x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> tuple[Tensor, Tensor | None]:
    """See `bertfast.ops.linear_gelu`; the second result is None unless `save`. One launch."""
    return linear(x, [weight], [bias], gelu=True, save=save)


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, pre: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.linear_gelu`: gradients of x, weight, bias. One launch."""
    return linear_backward(dout, x, [weight], needs, pre)
