"""Mean of -log softmax(x · Wᵀ + b)[label] over the labelled rows, without logits of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autocast import autocast
from .._checks import check_indices, check_like, check_matrix
from .._contract import Contract
from .._formulas import statistics_dtype


def masked_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    num_items: int | None = None,
) -> Tensor:
    """Σ_t (lse(x[t] · weightᵀ + bias) - (x[t] · weightᵀ + bias)[labels[t]]) / n over the rows with a label, in fp32.

    Args:
        x: [T,H] float32, bfloat16, float16 or float64; any strides.
        weight: [V,H], dtype of x; may be prepacked. bias: [V], dtype of x, or None.
        labels: [T] int64 in [0, V), or `ignore_index`: no label.
        num_items: n; None: the number of labelled rows, as torch's mean (nan if there is none).

    Returns: the loss [], fp32 (float64 for float64). Differentiable once; backward keeps lse [T]
    fp32. Rows without a label get gradient 0.
    Raises ArgumentError (shape, dtype, device; on the CPU a label out of range), UnsupportedError
    (a backend asked for by name refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = autocast(x, weight, bias)
    return _CONTRACT(x, weight, bias, labels, ignore_index, num_items)


def _check(a):
    check_matrix("x", a.x)
    vocabulary = a.weight.shape[0] if a.weight.ndim else 0
    check_like("x", a.x, ("weight", a.weight, (vocabulary, a.x.shape[1])))
    if a.bias is not None:
        check_like("x", a.x, ("bias", a.bias, (vocabulary,)))
    tokens, device = a.x.shape[0], a.x.device
    check_indices("labels", a.labels, tokens, vocabulary, device, besides=a.ignore_index)


def _shapes(a):
    dtype = statistics_dtype(a.x.dtype)
    return ((), dtype), (a.x.shape[:1], dtype)


_CONTRACT = Contract(
    "masked_cross_entropy",
    "Tensor x, Tensor weight, Tensor? bias, Tensor labels, SymInt ignore_index, SymInt? num_items",
    lead="x",
    check=_check,
    results=("loss", "lse"),
    shapes=_shapes,
    saved=("x", "weight", "bias", "labels", "lse", "ignore_index", "num_items"),
    gradients={"x": None, "weight": None, "bias": None},
    save=False,
)
