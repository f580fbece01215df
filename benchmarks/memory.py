"""Peak memory of one call, by Linux's own count of resident memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable


def measure_call(call: Callable[[], object], warm: int = 1) -> tuple[float, float]:
    """(resident MiB after `warm` calls, MiB above that at the peak of the next call)."""
    for _ in range(warm):
        call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # VmHWM starts again from now
    steady = status("VmRSS")
    call()
    return steady, status("VmHWM") - steady


def status(key: str) -> float:
    """MiB of a line of /proc/self/status."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
