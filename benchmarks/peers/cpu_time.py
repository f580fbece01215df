"""How much of the machine other processes took while one was timed, and what follows for the sample."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")


class Reading(NamedTuple):
    """Seconds: of the clock; of all CPUs' idleness; of this process' and its children's CPU time."""

    clock: float
    idle: float
    own: float


class Sample(NamedTuple):
    """Fields:
    seconds: by the clock.
    others: the share of the machine's CPU time that was neither idle nor this process'.
    """

    seconds: float
    others: float


def read() -> Reading:
    with open("/proc/stat") as lines:
        fields = lines.readline().split()
    idle = (int(fields[4]) + int(fields[5])) * TICK  # idle, and idle while a disk is waited for
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(use.ru_utime + use.ru_stime for use in uses)
    return Reading(time.perf_counter(), idle, own)


def compare(before: Reading, after: Reading, cpus: int) -> Sample:
    """The sample between two readings. What a hypervisor took counts as taken by others."""
    seconds = after.clock - before.clock
    busy = seconds * cpus - (after.idle - before.idle)
    others = busy - (after.own - before.own)
    # The kernel counts idleness in ticks, of each CPU: so much may be missing without anybody's doing.
    others = max(0.0, others - cpus * TICK)
    return Sample(seconds, others / (seconds * cpus))


def measure(call: Callable[[], object], calls: int) -> Sample:
    """`calls` calls in a row as one sample."""
    before = read()
    for _ in range(calls):
        call()
    return compare(before, read(), os.cpu_count() or 1)


class TooBusy(Exception):
    """Too many samples in a row were dropped, as other processes took the CPU."""


def undisturbed(
    take: Callable[[], Sample],
    allowed: float,
    most_dropped: int,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[Sample, int]:
    """(the first sample that others took at most the share `allowed` of, how many were dropped before it).

    Raises:
        TooBusy: more than `most_dropped` samples in a row were dropped.
    """
    for dropped in range(most_dropped + 1):
        sample = take()
        if sample.others <= allowed:
            return sample, dropped
        wait(min(10.0, 0.5 * 2**dropped))
    raise TooBusy(
        f"{most_dropped + 1} samples in a row were dropped: other processes took "
        f"{sample.others:.0%} of the CPU during the last, and {allowed:.0%} is allowed"
    )
