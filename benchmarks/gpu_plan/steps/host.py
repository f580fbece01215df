"""Where the time of forwards goes: on the host guards, streams, allocations and native calls; on the GPU how long it is
busy.

The host's parts are taken by counters around the functions that do them, which cost about 0.3 us each; what they leave
is Python, torch and waiting.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bertfast import extension

from ..device import Device, busy, short
from ..models import models_at
from ..results import Results

LOADS = ("1x128", "8x128")
LARGEST = 12  # kernels that the report names


def run(device: Device, results: Results) -> None:
    for load in LOADS:
        with results.trying(load):
            _profile(device, results, load)


def _profile(device: Device, results: Results, load: str) -> None:
    with device.plain(), torch.no_grad():
        for name, step in models_at(device, load).items():
            _one(device, results, load, name, step)


def _one(device: Device, results: Results, load: str, name: str, step: Callable) -> None:
    count = device.sizes.forwards

    def forwards() -> None:
        for _ in range(count):
            step()

    forwards()  # compiles, allocates
    device.synchronize()
    start = time.perf_counter()
    forwards()
    queued = time.perf_counter() - start
    device.synchronize()
    whole = time.perf_counter() - start
    kernels = device.kernels(forwards)
    running = busy(kernels)
    results.add(
        "A forward",
        load=load,
        model=name,
        host_us=round(queued / count * 1e6, 1),
        until_done_us=round(whole / count * 1e6, 1),
        gpu_busy_us=round(running / count, 1),
        busy_share=round(running / (whole * 1e6), 3),
        kernels=len(kernels) / count,
    )
    with counted() as parts:
        forwards()
        device.synchronize()
    for part, (times, seconds) in parts.items():
        results.add(
            "The host's parts of a forward",
            load=load,
            model=name,
            part=part,
            calls=times / count,
            host_us=round(seconds / count * 1e6, 2),
        )
    longest = defaultdict(float)
    for kernel in kernels:
        longest[short(kernel.name)] += kernel.end - kernel.start
    for kernel in sorted(longest, key=longest.get, reverse=True)[:LARGEST]:
        results.add(
            "The GPU's time of a forward, by kernel",
            load=load,
            model=name,
            kernel=kernel,
            gpu_us=round(longest[kernel] / count, 2),
        )


@contextlib.contextmanager
def counted() -> Iterator[dict[str, tuple[int, float]]]:
    """Part -> (calls, seconds) of what runs in the block."""
    found: dict[str, tuple[int, float]] = {}
    watched = [
        ("guards", torch.cuda.device, "__enter__"),
        ("guards", torch.cuda.device, "__exit__"),
        ("streams", torch.cuda, "current_stream"),
        ("allocations", torch.Tensor, "new_empty"),
        ("allocations", torch, "empty"),
        ("allocations", torch, "empty_like"),
    ]
    for module in filter(None, (extension.cuda, extension.cpu)):
        watched += [("native calls", module, name) for name in dir(module) if _launches(name)]
    with contextlib.ExitStack() as stack:
        for part, owner, name in watched:
            found.setdefault(part, (0, 0.0))
            stack.enter_context(_watched(found, part, owner, name))
        yield found


def _launches(name: str) -> bool:
    return name.endswith(("_fwd", "_bwd"))


@contextlib.contextmanager
def _watched(found: dict, part: str, owner: Any, name: str) -> Iterator[None]:
    """A function of a class or module, counted until the block ends."""
    own = name in vars(owner)
    function = getattr(owner, name)

    def call(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            times, seconds = found[part]
            found[part] = (times + 1, seconds + time.perf_counter() - start)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, function) if own else delattr(owner, name)
