"""Parting examples into those to train on and those to evaluate on, by nothing but their numbers and a seed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from ...errors import ArgumentError
from ..philox import Purpose, check_seed, draw


def split(
    count: int, share: float, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the examples to train on, and of those to evaluate on: sorted, int64.

    Both are a function of the arguments alone. A larger share evaluates on all that a smaller one does.

    Args:
        count: how many examples there are.
        share: of the examples to evaluate on; at least one example goes to each side.
        seed: 0 to 2**64 - 1.
        groups: a value for each example, such as its title; examples of one group stay together. Groups are counted by
            where they come first; as many are drawn as come nearest to the share of examples.

    Raises:
        ArgumentError: a share that is not between 0 and 1, groups that are not `count`, or less than two examples or
            groups.
    """
    check_seed(seed)
    if not 0 < share < 1:
        raise ArgumentError("share", "a number between 0 and 1", repr(share))
    if groups is not None and len(groups) != count:
        raise ArgumentError("groups", f"{count} values", str(len(groups)))
    places: dict[Hashable, int] = {}
    keys = range(count) if groups is None else groups
    member = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
    if len(places) < 2:
        what = "count" if groups is None else "groups"
        got = f"{len(places)} for {count} examples"
        raise ArgumentError(what, "at least two, one for each side", got)
    high, low, *_ = draw(seed, Purpose.SPLIT, 0, np.arange(len(places)))
    order = np.argsort(high << np.uint64(32) | low, kind="stable")
    sizes = np.cumsum(np.bincount(member)[order])  # of the first group drawn, the first two, ...
    taken = int(np.argmin(np.abs(sizes[:-1] - share * count))) + 1
    chosen = np.isin(member, order[:taken])
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
