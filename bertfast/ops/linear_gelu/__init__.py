"""gelu(x · Wᵀ + b): the first half of a layer's feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autocast import autocast
from .._checks import check_like, check_matrix
from .._contract import Contract


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x · weightᵀ + bias), gelu(y) = y · (1 + erf(y / √2)) / 2. Sums in fp32 (float64 for float64).

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        weight: [N,K], dtype of x; may be prepacked.
        bias: [N], dtype of x.

    Returns: [T,N], dtype of x. Differentiable once; backward keeps the pre-activation [T,N] in the dtype of x.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a backend asked for by name refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = autocast(x, weight, bias)
    return _CONTRACT(x, weight, bias)


def _check(a):
    check_matrix("x", a.x)
    features = a.bias.shape[:1] or (0,)
    check_like(
        "x", a.x, ("weight", a.weight, (*features, a.x.shape[1])), ("bias", a.bias, features)
    )


def _shapes(a):
    shape = (a.x.shape[0], a.weight.shape[0])
    return (shape, a.x.dtype), (shape, a.x.dtype)


_CONTRACT = Contract(
    "linear_gelu",
    "Tensor x, Tensor weight, Tensor bias",
    lead="x",
    check=_check,
    results=("out", "pre"),
    shapes=_shapes,
    saved=("x", "weight", "pre"),
    gradients={"x": None, "weight": None, "bias": lambda b: b.x.new_empty(b.weight.shape[0])},
)
