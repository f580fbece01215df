"""Races: contenders run in turn, A B C A B C ..., so that a drift of the machine's speed meets all of them.

A race is run once, when the first of its rows is asked for. Its samples are then given to pytest-benchmark row by row
through a clock that replays them, so tables, `--benchmark-json` and comparisons work as usual.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from bertfast import extension

LEAST_ROUNDS = 3


@dataclass
class Race:
    """The samples of the contenders of one group.

    Fields:
        tokens: real tokens of one call.
        flops: multiply-adds times two of one call, real tokens only; 0: a race of something else than arithmetic.
        narrow: contender -> its instruction set, where that is not the widest.
        peaks: instruction set -> fp32 operations a second, measured beside the race.
        samples: contender -> seconds of each round. skipped: contender -> reason.
        baseline: the contender that ratios are taken to.
    """

    group: str
    tokens: int
    flops: float
    baseline: str
    narrow: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self, contenders: dict[str, Callable[[], object]], budget: float) -> None:
        """One uncounted round, then rounds until `budget` seconds have gone and there are at least three."""
        self.samples = {name: [] for name in contenders}
        for call in contenders.values():
            call()
        end = time.perf_counter() + budget
        while time.perf_counter() < end or len(next(iter(self.samples.values()))) < LEAST_ROUNDS:
            for name in {widest(), *self.narrow.values()} if self.flops else ():
                self.peaks[name] = max(self.peaks.get(name, 0.0), fma_peak(name))
            for name, call in contenders.items():
                self.samples[name].append(_seconds(call))

    def figures(self, name: str) -> dict:
        """What goes into a row's extra_info. Ratios are medians of the ratios round by round."""
        seconds = median(self.samples[name])
        pairs = zip(self.samples[self.baseline], self.samples[name], strict=True)
        found = {
            "real_tokens": self.tokens,
            "real_tokens_per_second": round(self.tokens / seconds),
            f"speed_over_{self.baseline}": round(median(a / b for a, b in pairs), 3),
            "threads": torch.get_num_threads(),
        }
        if not self.flops:
            return found
        return {
            **found,
            "gflops": round(self.flops / seconds / 1e9, 1),
            "instruction_set": self.instruction_set(name),
            "share_of_fma_peak": round(
                self.flops / seconds / self.peaks[self.instruction_set(name)], 3
            ),
        }

    def instruction_set(self, name: str) -> str:
        """The one whose peak the contender's speed is a share of."""
        return self.narrow.get(name, widest())


def _seconds(call: Callable[[], object]) -> float:
    """The seconds of one call; a contender in another process returns its own."""
    start = time.perf_counter()
    result = call()
    return result if isinstance(result, float) else time.perf_counter() - start


def fma_peak(name: str) -> float:
    """fp32 operations a second of multiply-adds in registers of that instruction set, all threads together."""
    with variant(name):
        return extension.cpu.fma_peak(torch.get_num_threads(), 0.03)


def widest() -> str:
    """The widest instruction set that the C++ backend has and this machine runs."""
    return [name for name in extension.cpu.variants() if not name.endswith("_wide")][-1]


class variant:
    """Force an instruction set of the C++ backend inside the block."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.before = extension.cpu.variant()
        extension.cpu.set_variant(self.name)

    def __exit__(self, *_) -> None:
        extension.cpu.set_variant(self.before)


class ReplayClock:
    """A clock for pytest-benchmark that moves only when a recorded sample is replayed."""

    def __init__(self) -> None:
        self.now = 0.0
        self._samples: list[float] = []

    def load(self, samples: list[float]) -> None:
        self._samples = list(reversed(samples))

    def replay(self) -> None:
        self.now += self._samples.pop()

    def read(self) -> float:
        return self.now


CLOCK = ReplayClock()
RACES: dict[str, Race] = {}


def report(benchmark, race: Race, name: str) -> None:
    """Make the samples of one contender this test's row."""
    CLOCK.load(race.samples[name])
    benchmark.group = race.group
    benchmark.extra_info.update(race.figures(name))
    benchmark.pedantic(CLOCK.replay, rounds=len(race.samples[name]), iterations=1)
