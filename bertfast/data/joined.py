"""The sorted arrays of many shards, read as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class Joined:
    """Increasing numbers that lie in several arrays, as one array of int64 with `end` put after the last.

    Args:
        parts: uint32 arrays, none empty; each counts from its own base.
        bases: what is added to each part, increasing.
        end: the number after the last.
    """

    def __init__(self, parts: Sequence[np.ndarray], bases: Sequence[int], end: int):
        self.parts, self.end = list(parts), end
        self.bases = np.asarray(bases, dtype=np.int64)
        self.offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.offsets[-1]) + 1

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """The numbers at int64 indices of 0 to len - 1, in any order."""
        found = np.full(index.shape, self.end, dtype=np.int64)
        inside = np.flatnonzero(index < self.offsets[-1])
        for part, places in _by_part(self.offsets, index[inside]):
            where = inside[places]
            found[where] = self.parts[part][index[where] - self.offsets[part]]
            found[where] += self.bases[part]
        return found

    def range(self, start: int, stop: int) -> np.ndarray:
        """The numbers of `start` to `stop`, the last included."""
        return self[np.arange(start, stop + 1)]

    def last_at_most(self, values: np.ndarray) -> np.ndarray:
        """For each value of at least the first number, the largest index whose number is at most it."""
        found = np.full(values.shape, len(self) - 1, dtype=np.int64)
        inside = np.flatnonzero(values < self.end)
        for part, places in _by_part(self.bases, values[inside]):
            where = inside[places]
            local = np.minimum(values[where] - self.bases[part], 0xFFFFFFFF).astype(np.uint32)
            found[where] = self.parts[part].searchsorted(local, side="right") - 1
            found[where] += self.offsets[part]
        return found


def _by_part(starts: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(part, places of the values that lie in it) of each part that has any; parts begin at `starts`."""
    if not values.size:
        return
    part = starts.searchsorted(values, side="right") - 1
    if part[0] == part[-1] and (part == part[0]).all():
        yield int(part[0]), np.arange(values.size)
        return
    order = part.argsort(kind="stable")
    borders = np.flatnonzero(np.diff(part[order])) + 1
    for places in np.split(order, borders):
        yield int(part[places[0]]), places
