"""Which examples a step has: a function of the seed and the steps' sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .philox import Purpose, draw


class Piece(NamedTuple):
    """Examples of one epoch.

    Fields:
        epoch: its number. indices: int64 [N].
    """

    epoch: int
    indices: np.ndarray


class Order:
    """Each epoch's examples in an order of its own, one epoch after the other, cut into steps.

    Args:
        examples: gives how many an epoch has.
        seed: 0 to 2**64 - 1.
        sizes: int64 [steps], examples of each step; later ones are as the last.
        starts: of the epochs that are known, in examples since the first; they need not be counted again.
    """

    def __init__(
        self,
        examples: Callable[[int], int],
        seed: int,
        sizes: np.ndarray,
        starts: list[int] | None = None,
    ):
        self._examples, self._seed = examples, seed
        self._ends = np.concatenate([[0], np.cumsum(sizes)])
        self.starts = list(starts or [0])
        self._shuffled: tuple[int, np.ndarray] | None = None

    def step(self, step: int) -> list[Piece]:
        """The examples of a step, from 0: of one epoch, or of several where one ends."""
        begin, end = self._end(step), self._end(step + 1)
        found = []
        while begin < end:
            epoch = self._epoch_of(begin)
            start, stop = self.starts[epoch : epoch + 2]
            some = self._shuffle(epoch)[begin - start : min(end, stop) - start]
            found.append(Piece(epoch, some))
            begin += len(some)
        return found

    def _end(self, steps: int) -> int:
        """Examples of so many steps."""
        known = len(self._ends) - 1
        more = max(steps - known, 0) * int(self._ends[-1] - self._ends[-2])
        return int(self._ends[min(steps, known)]) + more

    def _epoch_of(self, place: int) -> int:
        while self.starts[-1] <= place:
            self.starts.append(self.starts[-1] + self._examples(len(self.starts) - 1))
        return int(np.searchsorted(self.starts, place, side="right")) - 1

    def _shuffle(self, epoch: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != epoch:
            count = self.starts[epoch + 1] - self.starts[epoch]
            high, low, *_ = draw(self._seed, Purpose.SHUFFLE, epoch, np.arange(count))
            self._shuffled = epoch, np.argsort(high << np.uint64(32) | low, kind="stable")
        return self._shuffled[1]
