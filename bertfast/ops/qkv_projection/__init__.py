"""x · [Wq Wk Wv]ᵀ + [bq bk bv]: query, key and value of every head in one product, from three
weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...errors import ArgumentError
from .. import _autograd
from .._checks import check_like, check_matrix

dispatch.register("qkv_projection", __name__)


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
    """qkv[t, i, h, :] = the h-th piece of x[t] · w_iᵀ + b_i, for i = query, key, value. Sums in
    fp32.

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        wq, wk, wv: [N,K], dtype of x; may be frozen.
        bq, bk, bv: [N], dtype of x.
        num_heads: h, divides N.

    Returns: [T,3,h,N/h], dtype of x, contiguous. Differentiable once.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a form asked for by name
    refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, wq, wk, wv, bq, bk, bv = _autograd.autocast(x, wq, wk, wv, bq, bk, bv)
    needs_grad = _autograd.wants_grad(x, wq, wk, wv, bq, bk, bv)
    if needs_grad or _autograd.through_library():
        return _autograd.differentiable("qkv_projection", x, wq, wk, wv, bq, bk, bv, num_heads)
    return _forward(x, wq, wk, wv, bq, bk, bv, num_heads)


def _forward(*args):
    x, wq, wk, wv, bq, bk, bv, num_heads = args
    check_matrix("x", x)
    features = bq.shape[0] if bq.ndim else 0
    matrix, row = (features, x.shape[1]), (features,)
    check_like(
        "x",
        x,
        ("wq", wq, matrix),
        ("wk", wk, matrix),
        ("wv", wv, matrix),
        ("bq", bq, row),
        ("bk", bk, row),
        ("bv", bv, row),
    )
    if num_heads < 1 or features % num_heads:
        raise ArgumentError("num_heads", f"a divisor of {features} (the features)", str(num_heads))
    return dispatch.choose("qkv_projection", "forward", args).forward(*args)


def _fwd_fake(x, wq, wk, wv, bq, bk, bv, num_heads):
    return x.new_empty(x.shape[0], 3, num_heads, wq.shape[0] // num_heads)


def _bwd(*args):
    return _autograd.run_backward("qkv_projection", *args)


def _bwd_fake(dqkv, x, wq, wk, wv, needs):
    return _autograd.fake_gradients(dqkv, needs, x, wq, wk, wv, wq[:, 0], wk[:, 0], wv[:, 0])


_autograd.define(
    "qkv_projection_fwd(Tensor x, Tensor wq, Tensor wk, Tensor wv, Tensor bq, Tensor bk, Tensor bv, SymInt num_heads)"
    " -> Tensor",
    _forward,
    _fwd_fake,
)
_autograd.define(
    "qkv_projection_bwd(Tensor dqkv, Tensor x, Tensor wq, Tensor wk, Tensor wv, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
_autograd.differentiate(
    "qkv_projection", wanted=(0, 1, 2, 3, 4, 5, 6), arguments=lambda inputs, outputs: inputs[:4]
)
