"""The backend triton: one product from three weights, and one launch for all their gradients."""

from __future__ import annotations

from torch import Tensor

from .._linear_triton import PRODUCTS as PRODUCTS
from .._linear_triton import linear, linear_backward
from .._linear_triton import supports as supports


def forward(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, bq: Tensor, bk: Tensor, bv: Tensor, num_heads: int
) -> Tensor:  # fmt: skip
    """See `bertfast.ops.qkv_projection`."""
    qkv, _ = linear(x, [wq, wk, wv], [bq, bk, bv])
    return qkv.view(x.shape[0], 3, num_heads, bq.shape[0] // num_heads)


def backward(
    dqkv: Tensor, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.qkv_projection`: gradients of x, the three weights, the three biases."""
    dout = dqkv.reshape(x.shape[0], 3 * wq.shape[0])
    return linear_backward(dout, x, [wq, wk, wv], needs)
