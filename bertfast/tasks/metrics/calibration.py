"""Whether a model's probabilities may be believed: a temperature for its logits, and the error that remains."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ...errors import ArgumentError
from ._checks import check_lengths, class_numbers

COLDEST, HOTTEST = 1 / 32, 32.0  # bounds of a temperature; where all is right, the best would be 0
_HALVINGS = 50


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / temperature) over the last axis, float64 of the same shape."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return scaled / scaled.sum(axis=-1, keepdims=True)


def temperature(logits: ArrayLike, gold: ArrayLike) -> float:
    """The temperature whose probabilities lose least on these examples, from 1/32 to 32.

    The loss, mean -log softmax(logits / T)[gold], is convex in 1/T: its slope is halved in on. Fit it on examples that
    were not trained on.

    Args:
        logits: [N, classes]. gold: class numbers [N].

    Raises:
        ArgumentError: other shapes, a class number without logits, or logits that are not finite.
    """
    scores, labels = np.asarray(logits, dtype=np.float64), class_numbers("gold", gold)
    if scores.ndim != 2 or not np.isfinite(scores).all():
        got = f"shape {list(scores.shape)}" if scores.ndim != 2 else "infinities or NaN"
        raise ArgumentError("logits", "finite numbers of shape [N, classes]", got)
    check_lengths(labels, scores)
    if labels.max() >= scores.shape[1]:
        raise ArgumentError("gold", f"numbers of {scores.shape[1]} classes", str(labels.max()))
    right = scores[np.arange(len(labels)), labels].mean()
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (probabilities(scores, math.exp(middle)) * scores).sum(axis=1).mean()
        # the slope by 1/T is expected - right; above 0 the best T is larger
        low, high = (middle, high) if expected > right else (low, middle)
    return math.exp((low + high) / 2)


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """The mean distance of confidence and accuracy over bins of equal width, each weighted by its examples.

    Args:
        confidence: the probability of the predicted class, 0 to 1 [N]. right: whether it was the gold one, bool [N].
        bins: bin b has the confidences above b / bins, up to (b + 1) / bins.

    Raises:
        ArgumentError: not as many of both, none, or a confidence outside 0 to 1.
    """
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    check_lengths(hits, sure)
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ArgumentError(
            "confidence", "probabilities from 0 to 1", f"{sure.min()} to {sure.max()}"
        )
    which = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure, side="left")
    distance = np.bincount(which, weights=sure - hits, minlength=bins)
    return float(np.abs(distance).sum() / len(sure))
