"""How sure a share is that was counted."""

from __future__ import annotations

import math

from ..errors import ArgumentError


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share: (low, high), from 0 to 1.

    Args:
        right: how many of `count` were right.
        z: the normal quantile; 1.96 for 95 %.

    Raises:
        ArgumentError: `count` is below 1, or `right` is not from 0 to `count`.
    """
    if count < 1:
        raise ArgumentError("count", "at least 1", repr(count))
    if not 0 <= right <= count:
        raise ArgumentError("right", f"0 to {count}", repr(right))
    share, square = right / count, z * z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = (
        z
        / (1 + square / count)
        * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    )
    # at both ends the interval ends there, which rounding may miss
    low = middle - half if right else 0.0
    high = middle + half if right < count else 1.0
    return low, high
