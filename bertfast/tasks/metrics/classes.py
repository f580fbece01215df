"""Metrics of classification: class numbers against class numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ...errors import ArgumentError
from ._checks import class_pair


def accuracy(gold: ArrayLike, predicted: ArrayLike) -> float:
    """The share of values that are equal. gold, predicted: whole numbers [N].

    Raises:
        ArgumentError: not as many class numbers, or none. So do the functions below.
    """
    first, second = class_pair(gold, predicted)
    return float(np.mean(first == second))


def confusion_matrix(gold: ArrayLike, predicted: ArrayLike, classes: int) -> np.ndarray:
    """How often class g was predicted as class p: int64 [classes, classes], row g, column p."""
    first, second = class_pair(gold, predicted)
    for name, values in (("gold", first), ("predicted", second)):
        if values.max() >= classes:
            raise ArgumentError(name, f"numbers of {classes} classes", str(values.max()))
    return np.bincount(first * classes + second, minlength=classes**2).reshape(classes, classes)


def f1(gold: ArrayLike, predicted: ArrayLike, positive: int = 1) -> float:
    """F1 of one class: 2 * hits / (2 * hits + misses + false alarms); 0 where it neither occurs nor is predicted.

    Several labels an example: give the flattened 0/1 matrices [N * labels], which is the micro F1.
    """
    first, second = class_pair(gold, predicted)
    hits = int(np.sum((first == positive) & (second == positive)))
    named = int(np.sum(first == positive) + np.sum(second == positive))
    return 2 * hits / named if named else 0.0


def macro_f1(gold: ArrayLike, predicted: ArrayLike) -> float:
    """The mean F1 of the classes that occur in gold or in predicted."""
    first, second = class_pair(gold, predicted)
    classes = np.union1d(first, second)
    return float(np.mean([f1(first, second, positive=number) for number in classes]))


def matthews(gold: ArrayLike, predicted: ArrayLike) -> float:
    """Matthews' correlation, of any number of classes, from -1 to 1; 0 where one side has one class only."""
    first, second = class_pair(gold, predicted)
    matrix = confusion_matrix(first, second, int(max(first.max(), second.max())) + 1)
    # Python's whole numbers: products of counts do not overflow
    rows, columns = matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    count, hits = len(first), int(matrix.trace())
    covariance = hits * count - sum(r * c for r, c in zip(rows, columns, strict=True))
    spread = (count**2 - sum(r * r for r in rows)) * (count**2 - sum(c * c for c in columns))
    return covariance / spread**0.5 if spread else 0.0
