"""What the steps ask of a device: samples by events, graphs, the kernels that ran, what it is.

All of it goes through a module like torch.cuda, which is that module or the stand-in's, so that these lines run
without a GPU too.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from .. import gpu
from .sizes import FULL, Sizes

ROOT = Path(__file__).parents[2]
WARM = 3  # calls before a capture or a race
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


class Kernel(NamedTuple):
    """One kernel, copy or memset of a profile, in microseconds."""

    name: str
    start: float
    end: float


class Device:
    """Args:
    cuda: torch.cuda, or what stands in for it.
    tensors: torch's name of the device where tensors live.
    kind: of the profile's events that count as kernels.
    tool: runs a command, as subprocess.run does.
    """

    def __init__(
        self,
        cuda: Any = torch.cuda,
        tensors: str = "cuda",
        kind: DeviceType = DeviceType.CUDA,
        sizes: Sizes = FULL,
        tool: Callable = subprocess.run,
        compiler: Callable = torch.compile,
        stand_in: bool = False,
    ):
        self.cuda, self.tensors, self.kind, self.sizes = cuda, tensors, kind, sizes
        self.tool, self.compile, self.stand_in = tool, compiler, stand_in
        self._flush = torch.empty(sizes.flush, dtype=torch.uint8, device=tensors)

    @property
    def name(self) -> str:
        return self.cuda.get_device_name()

    @property
    def roof(self) -> gpu.Roof | None:
        """The roofline of this card, None where its data sheet is not in the table."""
        return gpu.roof_of(self.name)

    def predicted_us(self, cost: gpu.Cost) -> float | None:
        """Microseconds of a launch or more at the roofline."""
        return None if self.roof is None else round(gpu.predicted(cost, self.roof) * 1e6, 2)

    def header(self) -> dict:
        """What the report says of device and programs."""
        triton = importlib.util.find_spec("triton")
        return {
            "stand_in": self.stand_in,
            "device": self.name,
            "compute capability": ".".join(map(str, self.cuda.get_device_capability())),
            "driver": self._query("driver_version"),
            "clocks": self.clocks(),
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda,
            "triton": version("triton") if triton else None,
            "bertfast": version("bertfast"),
            "commit": self._commit(),
            "date": datetime.date.today().isoformat(),
        }

    def clocks(self) -> str:
        """What nvidia-smi says of clocks, power and temperature now."""
        values = self._query(CLOCKS).split(", ")
        return ", ".join(
            f"{name} {value}" for name, value in zip(CLOCKS.split(","), values, strict=False)
        )

    def _query(self, what: str) -> str:
        which = getattr(self.cuda.get_device_properties(0), "uuid", None)
        one = [f"--id=GPU-{which}"] if which else []
        return self._said(["nvidia-smi", *one, f"--query-gpu={what}", "--format=csv,noheader"])

    def _commit(self) -> str:
        commit = self._said(["git", "rev-parse", "HEAD"])
        changed = self._said(["git", "status", "--porcelain", "--untracked-files=no"])
        return commit + (" and changes" if changed else "")

    def _said(self, command: list[str]) -> str:
        try:
            done = self.tool(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no answer: {error}"
        return done.stdout.strip()

    def synchronize(self) -> None:
        self.cuda.synchronize()

    def seconds(self, call: Callable[[], object], flushes: int) -> float:
        """The GPU's own time of a call, whose launches are queued while the cache is flushed that often."""
        start, stop = (self.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(flushes):
            self._flush.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def race(
        self, contenders: Mapping[str, Callable[[], object]], flushes: int, calls: int = 1
    ) -> dict[str, dict]:
        """Rounds of the contenders in turn; of each the columns of a row (`spread`), for one of the calls that are in
        what is given.
        """
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for call in contenders.values():
            for _ in range(WARM):
                call()
        for _ in range(self.sizes.rounds):
            for name, call in contenders.items():
                samples[name].append(self.seconds(call, flushes) / calls)
        return {name: spread(found) for name, found in samples.items()}

    def graph(self, call: Callable[[], object]) -> tuple[Callable[[], None], Any]:
        """(a replay of the call, what it computes into)."""
        side = self.cuda.Stream()
        side.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(side):
            for _ in range(WARM):
                call()
        self.cuda.current_stream().wait_stream(side)
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph):
            out = call()
        graph.replay()
        self.synchronize()
        return graph.replay, out

    def kernels(self, call: Callable[[], object]) -> list[Kernel]:
        """What ran on the device, by the order of the starts."""
        call()
        self.synchronize()
        with profile() as found:
            call()
            self.synchronize()
        events = [event for event in found.events() if event.device_type == self.kind]
        kernels = [
            Kernel(event.name, event.time_range.start, event.time_range.end)
            for event in events
            if event.cpu_parent is None and not event.is_user_annotation
        ]
        return sorted(kernels, key=lambda kernel: kernel.start)

    def plain(self) -> contextlib.AbstractContextManager:
        """No call of bertfast's is captured by itself inside the block."""
        import bertfast

        graphs = getattr(bertfast, "graphs", None)
        return graphs(False) if graphs else contextlib.nullcontext()


def spread(samples: list[float]) -> dict:
    """The columns of samples in seconds: their median, and where the middle eight tenths lie."""
    tenths = quantiles(samples, n=10, method="inclusive")
    return {
        "median_us": round(median(samples) * 1e6, 2),
        "low_us": round(tenths[0] * 1e6, 2),
        "high_us": round(tenths[-1] * 1e6, 2),
        "samples": len(samples),
    }


def busy(kernels: list[Kernel]) -> float:
    """Microseconds in which at least one of them ran."""
    total, end = 0.0, float("-inf")
    for kernel in kernels:
        total += max(0.0, kernel.end - max(end, kernel.start))
        end = max(end, kernel.end)
    return total


def gaps(kernels: list[Kernel]) -> list[float]:
    """Microseconds between the end of all that began before and the next start; 0 where they overlap."""
    found, end = [], float("-inf")
    for kernel in kernels:
        if end > float("-inf"):
            found.append(max(0.0, kernel.start - end))
        end = max(end, kernel.end)
    return found


def short(name: str) -> str:
    """A kernel's name without its arguments."""
    return name.split("(")[0][:90]
