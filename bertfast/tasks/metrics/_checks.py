"""What metrics ask of their arguments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ...errors import ArgumentError


def class_pair(gold: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as int64 arrays [N]. Raises ArgumentError unless they are N >= 1 class numbers each, from 0."""
    first, second = class_numbers("gold", gold), class_numbers("predicted", predicted)
    check_lengths(first, second)
    return first, second


def class_numbers(name: str, values: ArrayLike) -> np.ndarray:
    """An int64 array [N]. Raises ArgumentError unless all are whole numbers from 0."""
    found = np.asarray(values)
    whole = found.dtype.kind in "biu" or not found.size
    if found.ndim != 1 or not whole or (found.size and found.min() < 0):
        low = f", the least {found.min()}" if found.size and whole else ""
        got = f"{found.dtype} of shape {list(found.shape)}{low}"
        raise ArgumentError(name, "a row of class numbers, from 0", got)
    return found.astype(np.int64)


def number_pair(gold: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 arrays [N]. Raises ArgumentError unless they are N >= 1 finite numbers each."""
    first, second = (
        _numbers(name, values) for name, values in (("gold", gold), ("predicted", predicted))
    )
    check_lengths(first, second)
    return first, second


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise ArgumentError(name, "a row of numbers", f"shape {list(found.shape)}")
    if not np.isfinite(found).all():
        wrong = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ArgumentError(f"{name}[{wrong}]", "a finite number", str(found[wrong]))
    return found


def check_lengths(gold: np.ndarray, predicted: np.ndarray) -> None:
    if len(gold) != len(predicted):
        got = f"{len(gold)} and {len(predicted)}"
        raise ArgumentError("predicted", "as many values as gold ones", got)
    if not len(gold):
        raise ArgumentError("gold", "at least one value", "none")
