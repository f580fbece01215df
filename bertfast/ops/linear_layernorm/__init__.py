"""LN(residual + dropout(x · Wᵀ + b)): the end of both halves of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autocast import autocast, autocast_beside
from .._checks import (
    check_beside,
    check_dropout,
    check_example_ids,
    check_like,
    check_matrix,
    check_sequences,
)
from .._contract import Contract
from .._formulas import statistics_dtype


def linear_layernorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    example_ids: Tensor | None = None,
) -> Tensor:
    """z = residual + dropout(x · weightᵀ + bias); (z - mean(z)) / √(var(z) + eps) · ln_weight + ln_bias, per row.

    Statistics and sums in fp32 (float64 for float64).

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        weight: [N,K], dtype of x; may be prepacked.
        bias: [N], dtype of x.
        residual: [T,N], dtype of x or, beside bfloat16 and float16, float32; any strides.
        ln_weight, ln_bias: [N], dtype of residual.
        eps: added to the variance (the biased one).
        p: probability of dropping; where it is not 0 `seed` (int64 [1]) and `cu_seqlens` (int32 [B+1]) are needed.
        example_ids: [B] int64, read where p is not 0: dropout counts a sequence by its id's low 32 bits, so that it
            drops the same in any batch; None: by the sequence's index.

    Under torch.autocast x, weight and bias are cast, the others are not: residual, ln_weight and
    ln_bias take the widest dtype among them, so that a float32 residual stream stays float32.

    Returns: [T,N], dtype of residual. Differentiable once; backward keeps z in the dtype of
    residual, and mean and rstd in fp32.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a backend asked for by name refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = autocast(x, weight, bias)
        residual, ln_weight, ln_bias = autocast_beside(x, residual, ln_weight, ln_bias)
    return _CONTRACT(
        x, weight, bias, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, example_ids
    )


def _check(a):
    check_matrix("x", a.x)
    check_matrix("residual", a.residual)
    tokens, columns = a.x.shape
    row = a.residual.shape[1:]
    check_beside(
        a.x,
        ("residual", a.residual, (tokens, *row)),
        ("ln_weight", a.ln_weight, row),
        ("ln_bias", a.ln_bias, row),
    )
    check_like("x", a.x, ("weight", a.weight, (*row, columns)), ("bias", a.bias, row))
    check_dropout(a.p, a.seed, a.x.device)
    if a.p > 0:
        check_sequences(a.cu_seqlens, tokens, a.x.device)
        check_example_ids(a.example_ids, a.cu_seqlens)


def _shapes(a):
    like = (a.residual.shape, a.residual.dtype)
    statistics = (a.x.shape[:1], statistics_dtype(a.x.dtype))
    return like, like, statistics, statistics


_CONTRACT = Contract(
    "linear_layernorm",
    "Tensor x, Tensor weight, Tensor bias, Tensor residual, Tensor ln_weight, Tensor ln_bias, float eps, float p, "
    "Tensor? seed, Tensor? cu_seqlens, Tensor? example_ids",
    lead="x",
    check=_check,
    results=("out", "z", "mean", "rstd"),
    shapes=_shapes,
    saved=(
        *("x", "weight", "z", "mean", "rstd", "ln_weight", "p", "seed", "cu_seqlens"),
        "example_ids",
    ),
    gradients={
        "x": None,
        "weight": None,
        "bias": lambda b: b.x.new_empty(b.weight.shape[0]),
        "residual": lambda b: b.z,
        "ln_weight": None,
        "ln_bias": lambda b: b.ln_weight,
    },
)
