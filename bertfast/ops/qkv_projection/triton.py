"""Triton form: one product from three weights, and one launch for all their gradients."""

from __future__ import annotations

from torch import Tensor

from .. import _gemm_triton
from .._autograd import thaw
from .._triton import refuses


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the Triton form computes this, else the reason."""
    return refuses(x, product=True)


def forward(
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    bq: Tensor,
    bk: Tensor,
    bv: Tensor,
    num_heads: int,
) -> Tensor:
    """See `bertfast.ops.qkv_projection`."""
    weights = [thaw(weight) for weight in (wq, wk, wv)]
    qkv, _ = _gemm_triton.linear(x, weights, [bq, bk, bv])
    return qkv.view(x.shape[0], 3, num_heads, bq.shape[0] // num_heads)


def backward(
    dqkv: Tensor, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.qkv_projection`: gradients of x, the three weights, the three biases."""
    weights = [thaw(weight) for weight in (wq, wk, wv)]
    dout = dqkv.reshape(x.shape[0], 3 * wq.shape[0])
    return _gemm_triton.linear_backward(dout, x, weights, needs)
