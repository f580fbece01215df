"""Triton form: one product from three weights, and one launch for all their gradients."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .. import _gemm_triton
from .._autograd import linear_gradients, thaw
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


def _forward_by_matmul(
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    bq: Tensor,
    bk: Tensor,
    bv: Tensor,
    num_heads: int,
) -> Tensor:
    qkv = torch.addmm(torch.cat((bq, bk, bv)), x, _stacked(wq, wk, wv).t())
    return qkv.view(x.shape[0], 3, num_heads, bq.shape[0] // num_heads)


def _backward_by_matmul(
    dqkv: Tensor, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    dout = dqkv.flatten(1)
    dx = dout @ _stacked(wq, wk, wv) if needs[0] else None
    parts = [
        linear_gradients(part, x, wq, (False, needs[1 + i], needs[4 + i]))
        for i, part in enumerate(dout.chunk(3, 1))
    ]
    return dx, *(part[1] for part in parts), *(part[2] for part in parts)


def _stacked(*weights: Tensor) -> Tensor:
    """One matrix of all: to copy the weights takes less than to stack three results, unless tokens are few."""
    return torch.cat([thaw(weight) for weight in weights])


# torch's own product, its result laid out as ours: the second candidate for the measured dispatch
matmul = SimpleNamespace(
    forward=_forward_by_matmul, backward=_backward_by_matmul, supports=supports
)
