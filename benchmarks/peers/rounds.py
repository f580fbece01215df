"""Contenders' samples, taken in turn round by round; a sample that others disturbed is taken again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from .cpu_time import Sample, undisturbed
from .process import ContenderFailed

SHORTEST = 0.3  # seconds of a sample; shorter calls are repeated within it
PAUSE = 0.25  # seconds in which the threads of the contender before stop waiting for more work


class Asked(Protocol):
    """A contender's process."""

    def ask(self, do: str, **arguments: Any) -> Any: ...


@dataclass
class Timing:
    """Fields:
    calls: in a row, in each sample. seconds: of one call, a figure a round. dropped: samples that others disturbed.
    """

    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    dropped: int = 0


class Race:
    """The rounds of one load.

    Args:
        allowed: the share of the machine's CPU time that others may take during a sample.
        most_dropped: how many samples of a contender may be dropped in a row.

    Attributes:
        timings: by contender. failed: contender -> reason; it has no timing then.
    """

    def __init__(self, contenders: dict[str, Asked], allowed: float, most_dropped: int):
        self.contenders = contenders
        self.allowed = allowed
        self.most_dropped = most_dropped
        self.timings = {name: Timing() for name in contenders}
        self.failed: dict[str, str] = {}

    def run(self, rounds: int) -> None:
        """Raises TooBusy where the machine is never quiet."""
        self._each(self._count_calls)
        for _ in range(rounds):
            self._each(self._sample)

    def _each(self, step: Any) -> None:
        for name in list(self.timings):
            try:
                step(self.contenders[name], self.timings[name])
            except ContenderFailed as error:
                self.failed[name] = str(error)
                del self.timings[name]

    def _count_calls(self, contender: Asked, timing: Timing) -> None:
        one = contender.ask("run", calls=1)["seconds"]
        timing.calls = max(1, math.ceil(SHORTEST / one))

    def _sample(self, contender: Asked, timing: Timing) -> None:
        def take() -> Sample:
            time.sleep(PAUSE)
            if timing.calls > 1:  # what others left in the caches matters for short calls
                contender.ask("run", calls=1)
            return Sample(**contender.ask("run", calls=timing.calls))

        sample, dropped = undisturbed(take, self.allowed, self.most_dropped)
        timing.seconds.append(sample.seconds / timing.calls)
        timing.dropped += dropped
