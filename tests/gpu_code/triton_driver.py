"""A driver that makes Triton launch on CPU tensors: `kernel[grid](...)` runs unmodified, its PTX in the executor.

    with emulated(arch=80) as device:
        add_kernel[(4,)](x, y, out, n, BLOCK=1024)     # x, y, out: tensors on the CPU
    device.launches[0].report.bytes_written["out_ptr"]

Tensors among the arguments become the executor's buffers, with the extent that their strides span. Memory that torch
allocates inside the block without filling it (torch.empty and its kin) is poisoned and counts as unwritten until a
torch operation or a kernel wrote it: a kernel that reads it before is at fault, however many launches lie between.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from gpu_code import executor
from gpu_code.memory import Memory

# Shared memory that one block may have, in bytes, by the architecture; what Triton's limit is on such a card.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}


@dataclass
class Launch:
    """One launch: what was compiled, and what the executor saw (None where nothing was executed)."""

    name: str
    grid: tuple[int, int, int]
    kernel: CompiledKernel  # .metadata (shared, num_warps, num_stages, target...) and .asm (ptx, cubin, ttgir...)
    report: Any = None
    again: Callable[[str], Any] | None = (
        None  # runs another PTX text in its place: on memory as it was left
    )

    @property
    def asm(self):
        return self.kernel.asm

    @property
    def metadata(self):
        return self.kernel.metadata


@dataclass
class Device:
    """How kernels are compiled and executed inside `emulated`, and what was launched so far."""

    target: GPUTarget
    execute: bool
    multiprocessors: int
    mutate: Callable[[str], str] | None
    keep: bool
    blocks: Callable[[tuple], list] | None
    options: dict  # of executor.launch: check, order, seed, limit
    launches: list[Launch] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)

    def launched_in_all(self) -> list[str]:
        """The kernels launched so far, then torch's operations that each launch one on a GPU."""
        return [launch.name for launch in self.launches] + self.memory.launching()


@contextlib.contextmanager
def emulated(
    arch: int | str = 80,
    *,
    execute: bool = True,
    check: bool = True,
    order: str = "forward",
    seed: int = 0,
    limit: int | None = None,
    multiprocessors: int = 4,
    mutate: Callable[[str], str] | None = None,
    keep: bool = False,
    blocks: Callable[[tuple[int, int, int]], list[tuple]] | None = None,
) -> Iterator[Device]:
    """Makes an emulated GPU Triton's active device inside the block.

    Args:
        arch: compute capability, 80 for sm_80; a text such as "gfx942" names an AMD target, which is only compiled for.
        execute: False compiles and records each launch without running it.
        check: looks for races, reads of unwritten memory and bytes that two blocks write, besides bounds and alignment.
        order: of blocks, warps and lanes: forward, reversed or shuffled (by `seed`).
        limit: instructions after which a launch counts as endless; None leaves it to the executor.
        multiprocessors: what the device says it has.
        mutate: rewrites the PTX of each kernel before it is executed.
        keep: holds the tensors of every launch, so that `Launch.again` can run it once more.
        blocks: which blocks of a grid to run; None: all.
    """
    backend, lanes = ("cuda", 32) if isinstance(arch, int) else ("hip", 64)
    if execute and backend != "cuda":
        raise ValueError(f"the executor runs PTX; {arch} can only be compiled for: execute=False")
    options = {"check": check, "order": order, "seed": seed}
    if limit is not None:
        options["limit"] = limit
    target = GPUTarget(backend, arch, lanes)
    device = Device(target, execute, multiprocessors, mutate, keep, blocks, options)
    former = driver._active  # .active would look for a GPU
    driver.set_active(EmulatedDriver(device))
    try:
        with device.memory:
            yield device
    finally:
        driver.set_active(former)


class EmulatedDriver(DriverBase):
    """What Triton asks of a driver."""

    def __init__(self, device: Device):
        self.device = device
        self.utils = self
        self.launcher_cls = Launcher

    @classmethod
    def is_active(cls) -> bool:
        return isinstance(driver._active, cls)

    def get_current_target(self) -> GPUTarget:
        return self.device.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> GPUTarget:
        """Triton keeps compiled kernels by device number; the target in its place parts the architectures."""
        return self.device.target

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("an emulated device has no launcher in C++")

    def get_benchmarker(self):
        raise NotImplementedError("an emulated device has no clock")

    def get_device_properties(self, device: GPUTarget) -> dict[str, int]:
        shared = SHARED_MEMORY.get(self.device.target.arch, 65536)
        return {
            "max_shared_mem": shared,
            "max_num_regs": 65536,
            "multiprocessor_count": self.device.multiprocessors,
            "warpSize": self.device.target.warp_size,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: GPUTarget):
        """(module, function, registers, spills, threads a block): nothing is loaded, so nothing will be unloaded."""
        return None, None, 0, 0, 1024

    def unload_module(self, module) -> None:
        pass


class Launcher:
    """Runs one compiled kernel on the device that is active at the time of the launch."""

    def __init__(self, src, metadata):
        names = get_cache_manager(metadata.hash).get_group(f"{src.name[:150]}.json")
        self.kernel = CompiledKernel(src, names, metadata.hash)  # Triton gives a launcher no code
        self.signature = src.signature

    def __call__(
        self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments
    ):
        device = driver.active.device
        launch = Launch(self.kernel.metadata.name, (x, y, z), self.kernel)
        device.launches.append(launch)
        if device.execute and x * y * z:
            launch.report = self.execute(device, launch, arguments)

    def execute(self, device: Device, launch: Launch, arguments: tuple):
        metadata = launch.metadata
        if metadata.num_ctas != 1 or metadata.global_scratch_size or metadata.profile_scratch_size:
            raise NotImplementedError(
                f"{launch.name}: clusters and scratch memory are not emulated"
            )
        named = list(_runtime_arguments(self.signature.items(), arguments))
        buffers = device.memory.buffers([(name, x) for name, x in named if isinstance(x, Tensor)])

        def run(code: str):
            kernel = _load(code, launch.name)
            values = [x.data_ptr() if isinstance(x, Tensor) else x for _, x in named]
            scratch = [0] * (len(kernel.parameters) - len(values))  # pointers that Triton appends
            return executor.launch(
                kernel,
                grid=launch.grid,
                block=(metadata.num_warps * metadata.warp_size, 1, 1),
                arguments=values + scratch,
                shared=metadata.shared,
                buffers=buffers,
                blocks=device.blocks and device.blocks(launch.grid),
                **device.options,
            )

        launch.again = run if device.keep else None
        code = launch.asm["ptx"]
        return run(device.mutate(code) if device.mutate else code)


@functools.lru_cache(maxsize=64)
def _load(code: str, name: str):
    return executor.load(code, name=name)[name]


def _runtime_arguments(signature, arguments) -> Iterator[tuple[str, Any]]:
    """(name, value) of what the compiled kernel takes: constants are compiled in, tuples are flattened."""
    for (name, kind), value in zip(signature, arguments, strict=True):
        if isinstance(kind, tuple):
            inner = [(f"{name}.{i}", part) for i, part in enumerate(kind)]
            yield from _runtime_arguments(inner, value)
        elif kind.startswith("tensordesc"):
            raise NotImplementedError(f"{name}: tensor descriptors are not emulated")
        elif kind != "constexpr":
            yield name, value
