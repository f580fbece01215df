"""Metrics of regression: how far predicted numbers go with the gold ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import number_pair


def pearson(gold: ArrayLike, predicted: ArrayLike) -> float:
    """Pearson's correlation of two rows of numbers [N], from -1 to 1; 0 where one side is constant.

    Raises:
        ArgumentError: not as many finite numbers, or none. So does `spearman`.
    """
    first, second = (_centred(values) for values in number_pair(gold, predicted))
    return float(np.clip(first @ second, -1, 1))


def spearman(gold: ArrayLike, predicted: ArrayLike) -> float:
    """Spearman's correlation: Pearson's of the ranks, where equal numbers share the mean of their ranks."""
    first, second = number_pair(gold, predicted)
    return pearson(ranks(first), ranks(second))


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each number [N], from 1; equal ones have the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def _centred(values: np.ndarray) -> np.ndarray:
    """The numbers less their mean, of length 1; zeros where all are equal."""
    if values.min() == values.max():  # the rounded mean of equal numbers may be another number
        return np.zeros_like(values)
    values = values / np.abs(values).max()  # the squares of huge numbers would overflow
    values = values - values.mean()
    return values / np.linalg.norm(values)
