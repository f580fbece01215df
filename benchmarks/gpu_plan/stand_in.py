"""A stand-in for a GPU: tensors on the CPU, tiny sizes, and of torch.cuda what `Device` asks for. It times nothing.

Its clock moves by the same at every event. A captured call has run once, and a replay does nothing.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from torch.autograd import DeviceType

from .device import Device
from .sizes import TINY

_NOW = [0.0]  # milliseconds


class Event:
    """As torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False):
        assert enable_timing

    def record(self) -> None:
        _NOW[0] += 1
        self.at = _NOW[0]

    def synchronize(self) -> None:
        """Nothing is under way."""

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


class Stream:
    """As torch.cuda.Stream."""

    def wait_stream(self, other: Stream) -> None:
        """Nothing is under way."""


class CUDAGraph:
    """As torch.cuda.CUDAGraph; knows whether a call was captured."""

    captured = False

    def replay(self) -> None:
        assert self.captured


@contextlib.contextmanager
def graph(graph: CUDAGraph) -> Iterator[None]:
    """As torch.cuda.graph, but that the call runs."""
    yield
    graph.captured = True


CUDA = SimpleNamespace(
    Event=Event,
    Stream=Stream,
    CUDAGraph=CUDAGraph,
    graph=graph,
    stream=lambda stream: contextlib.nullcontext(),
    current_stream=Stream,
    synchronize=lambda: None,
    get_device_name=lambda: "STAND-IN",
    get_device_capability=lambda: (0, 0),
    get_device_properties=lambda index: SimpleNamespace(uuid="0"),
)


def tool(command: list[str], **_) -> subprocess.CompletedProcess:
    """Runs nothing, all goes well."""
    return subprocess.CompletedProcess(command, 0, "stand-in", "")


def compiled(function: Callable, mode: str | None = None) -> Callable:
    """As torch.compile, which takes a minute where this takes none."""
    return function


def device() -> Device:
    return Device(CUDA, "cpu", DeviceType.CPU, TINY, tool, compiled, stand_in=True)
