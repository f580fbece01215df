"""The machine: what it is, what runs on it, and how fast it multiplies and reads."""

from __future__ import annotations

import os
import time
from datetime import date

import torch

from ..processor import processor
from ..race import fma_peak, widest
from .contenders import CONTENDERS, version

READ = 1 << 30  # bytes, more than any cache holds
TRIES = 5


def describe(threads: int) -> dict:
    """What a published figure carries."""
    packages = {package for contender in CONTENDERS for package in contender.packages}
    versions = {name: version(name) for name in sorted({"torch", "numpy", "bertfast", *packages})}
    return {
        "processor": processor(),
        "instruction_set": widest(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "date": date.today().isoformat(),
        "versions": {name: found for name, found in versions.items() if found},
    }


class Rates:
    """The best of several measurements in the run: fp32 operations a second, bytes read from memory a second."""

    def __init__(self, threads: int):
        torch.set_num_threads(threads)
        self.flops = self.bytes = 0.0

    def measure(self) -> None:
        block = torch.ones(READ // 4)
        for _ in range(TRIES):
            self.flops = max(self.flops, fma_peak(widest()))
            start = time.perf_counter()
            block.sum()
            self.bytes = max(self.bytes, READ / (time.perf_counter() - start))
