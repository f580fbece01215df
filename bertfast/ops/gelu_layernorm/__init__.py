"""LN(gelu(x · Wᵀ + b)): the transform before the decoder of the masked-language-model head."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autocast import autocast, autocast_beside
from .._checks import check_beside, check_like, check_matrix
from .._contract import Contract
from .._formulas import statistics_dtype


def gelu_layernorm(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, *, eps: float
) -> Tensor:
    """g = gelu(x · weightᵀ + bias), erf form; (g - mean(g)) / √(var(g) + eps) · ln_weight + ln_bias, per row.

    Statistics and sums in fp32 (float64 for float64).

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        weight: [N,K], dtype of x; may be prepacked.
        bias: [N], dtype of x.
        ln_weight, ln_bias: [N], dtype of x or, beside bfloat16 and float16, float32.
        eps: added to the variance (the biased one).

    Under torch.autocast x, weight and bias are cast, the others are not: ln_weight and ln_bias take
    the widest dtype among them.

    Returns: [T,N], dtype of ln_weight. Differentiable once; backward keeps the pre-activation in
    the dtype of x, and mean and rstd in fp32.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a backend asked for by name refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = autocast(x, weight, bias)
        ln_weight, ln_bias = autocast_beside(x, ln_weight, ln_bias)
    return _CONTRACT(x, weight, bias, ln_weight, ln_bias, eps)


def _check(a):
    check_matrix("x", a.x)
    row = a.bias.shape[:1] or (0,)
    check_like("x", a.x, ("weight", a.weight, (*row, a.x.shape[1])), ("bias", a.bias, row))
    check_beside(a.x, ("ln_weight", a.ln_weight, row), ("ln_bias", a.ln_bias, row))


def _shapes(a):
    tokens, shape = a.x.shape[:1], (a.x.shape[0], a.weight.shape[0])
    statistics = (tokens, statistics_dtype(a.x.dtype))
    return (shape, a.ln_weight.dtype), (shape, a.x.dtype), statistics, statistics


_CONTRACT = Contract(
    "gelu_layernorm",
    "Tensor x, Tensor weight, Tensor bias, Tensor ln_weight, Tensor ln_bias, float eps",
    lead="x",
    check=_check,
    results=("out", "pre", "mean", "rstd"),
    shapes=_shapes,
    saved=("x", "weight", "pre", "mean", "rstd", "ln_weight"),
    gradients={
        "x": None,
        "weight": None,
        "bias": lambda b: b.x.new_empty(b.weight.shape[0]),
        "ln_weight": None,
        "ln_bias": lambda b: b.ln_weight,
    },
)
