"""x · [Wq Wk Wv]ᵀ + [bq bk bv]: query, key and value of every head in one product, from three weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ArgumentError
from .._autocast import autocast
from .._checks import check_like, check_matrix
from .._contract import Contract


def qkv_projection(
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    bq: Tensor,
    bk: Tensor,
    bv: Tensor,
    *,
    num_heads: int,
) -> Tensor:
    """qkv[t, i, h, :] = the h-th piece of x[t] · w_iᵀ + b_i, for i = query, key, value. Sums in fp32.

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        wq, wk, wv: [N,K], dtype of x; may be prepacked.
        bq, bk, bv: [N], dtype of x.
        num_heads: h, divides N.

    Returns: [T,3,h,N/h], dtype of x, contiguous. Differentiable once.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a backend asked for by name refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, wq, wk, wv, bq, bk, bv = autocast(x, wq, wk, wv, bq, bk, bv)
    return _CONTRACT(x, wq, wk, wv, bq, bk, bv, num_heads)


def _check(a):
    check_matrix("x", a.x)
    row = a.bq.shape[:1] or (0,)
    matrix = (*row, a.x.shape[1])
    weights = (("wq", a.wq, matrix), ("wk", a.wk, matrix), ("wv", a.wv, matrix))
    check_like("x", a.x, *weights, ("bq", a.bq, row), ("bk", a.bk, row), ("bv", a.bv, row))
    if a.num_heads < 1 or row[0] % a.num_heads:
        expected = f"a divisor of {row[0]} (the features)"
        raise ArgumentError("num_heads", expected, str(a.num_heads))


def _shapes(a):
    size = a.wq.shape[0] // a.num_heads
    return (((a.x.shape[0], 3, a.num_heads, size), a.x.dtype),)


def _bias(b):
    return b.x.new_empty(b.wq.shape[0])


_CONTRACT = Contract(
    "qkv_projection",
    "Tensor x, Tensor wq, Tensor wk, Tensor wv, Tensor bq, Tensor bk, Tensor bv, SymInt num_heads",
    lead="x",
    check=_check,
    results=("qkv",),
    shapes=_shapes,
    saved=("x", "wq", "wk", "wv"),
    gradients={
        **dict.fromkeys(("x", "wq", "wk", "wv")),
        **dict.fromkeys(("bq", "bk", "bv"), _bias),
    },
    save=False,
)
