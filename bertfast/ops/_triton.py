"""What the Triton backends share: whether they can run here, their dtypes, and their tables of block shapes.

Kernels run where Triton's active driver says that they do: on a CUDA GPU, on the CPU under TRITON_INTERPRET=1, or on
whatever device another driver stands for. Importing this module raises ImportError where Triton is absent or broken.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import extension

logger = logging.getLogger("bertfast")
# Of releases executed under the parity tests, 3.2 alone made code with a race (in strict float32 products).
LEAST_TRITON = (3, 3)

try:
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < LEAST_TRITON:
        raise ImportError(f"it is {triton.__version__}, and 3.3 (torch 2.7) or newer is needed")
    from triton.runtime import driver
except Exception as error:  # a broken installation raises whatever it likes
    raise ImportError(f"triton cannot be imported: {error}") from error

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LEAST_ARCH = 80
MOST_BLOCKS = 65535  # of a grid's second dimension
knobs = getattr(triton, "knobs", None)  # Triton 3.3, of torch 2.7, reads variables instead


class Config(NamedTuple):
    """How one kernel is cut: its block sizes by name (constexpr arguments), warps and pipeline stages.

    max_registers: of a thread. Without a bound ptxas sometimes spills a few bytes to make room for one more block; with
    one, be it the largest there is (255), it spills only what does not fit.
    """

    blocks: dict[str, int]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def options(self) -> dict:
        """The keyword arguments of a launch."""
        stages = self.num_stages
        if device_properties().backend == "hip":
            # AMD's compiler keeps a stage in registers, and its cards have 64 KiB of shared memory a block.
            stages = min(stages, 2)
        shape = {"num_warps": self.num_warps, "num_stages": stages, "enable_fp_fusion": True}
        bound = {} if self.max_registers is None else registers(self.max_registers)
        return {**self.blocks, **shape, **bound}


class Table:
    """The shipped configurations of one kernel: {least arch: {key: Config}}.

    `pick` takes the entries of the newest architecture that is not newer than the device's. `force` pins one entry in a
    block, for tests and gates that visit every configuration.
    """

    def __init__(self, name: str, entries: dict[int, dict[str, Config]]):
        self.name, self.entries = name, entries
        self._forced: Config | None = None
        TABLES[name] = self

    def pick(self, key: str) -> Config:
        return self._forced or self.configs(arch())[key]

    def configs(self, for_arch: int) -> dict[str, Config]:
        """The configurations that serve an architecture, by key."""
        return self.entries[max(least for least in self.entries if least <= for_arch)]

    @contextlib.contextmanager
    def force(self, config: Config) -> Iterator[None]:
        self._forced = config
        try:
            yield
        finally:
            self._forced = None


TABLES: dict[str, Table] = {}


class DeviceProperties(NamedTuple):
    """What a device is, as Triton's driver tells.

    Fields:
        backend: cuda or hip; empty in the interpreter.
        arch: compute capability, 80 for sm_80; LEAST_ARCH where the card has none.
    """

    device_type: str
    backend: str
    arch: int
    multiprocessors: int


_INTERPRETER = DeviceProperties("cpu", "", LEAST_ARCH, 4)
_KNOWN: weakref.WeakKeyDictionary[object, dict] = weakref.WeakKeyDictionary()


@functools.cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is settled when they are made: at import."""
    if knobs is None:
        return os.environ.get("TRITON_INTERPRET", "0") == "1"
    return knobs.runtime.interpret


def device_properties() -> DeviceProperties:
    """The current device. Raises what Triton raises where it finds none.

    Each is asked once: reading its properties takes a driver as long as a large kernel (1 ms on an H100).
    """
    if interpreted():
        return _INTERPRETER
    active = driver.active
    device = active.get_current_device()
    known = _KNOWN.setdefault(active, {})
    if device not in known:
        target = active.get_current_target()
        arch = target.arch if target.backend == "cuda" else LEAST_ARCH
        count = active.utils.get_device_properties(device)["multiprocessor_count"]
        known[device] = DeviceProperties(
            active.get_active_torch_device().type, target.backend, arch, count
        )
    return known[device]


def arch() -> int:
    """The compute capability of the current device."""
    return device_properties().arch


def registers(count: int) -> dict[str, int]:
    """The launch option that lets a thread have `count` registers, where the backend takes it: NVIDIA's does."""
    return {"maxnreg": count} if device_properties().backend == "cuda" else {}


def multiprocessors() -> int:
    """Of the current device: how many resident blocks a persistent loop spreads over."""
    return device_properties().multiprocessors


def refuses(x: Tensor, product: bool = False) -> str | None:
    """Why the Triton backend cannot compute on tensors like `x`, or None.

    Args:
        product: the operation holds a matrix product, for which Triton needs tensor cores of sm_80 and newer.
    """
    reason = _cannot_run(x)
    if reason is not None:
        return reason
    here = device_properties()
    if x.device.type != here.device_type:
        return f"tensors on {x.device.type}; triton computes on {here.device_type}"
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype}; the triton backend computes in float32, bfloat16 and float16"
    if product and here.arch < LEAST_ARCH:
        return f"sm_{here.arch}: Triton makes no tensor-core code before sm_{LEAST_ARCH}"
    return None


@functools.cache
def cannot_run() -> str | None:
    """Why kernels cannot run on a GPU of this machine, or None; tried once a process."""
    reason = None if interpreted() else _no_compiler()
    try:
        reason or device_properties()
    except Exception as error:  # the driver's module is compiled here
        reason = "triton's driver does not start: " + " ".join(str(error).split())
    return reason


def _no_compiler() -> str | None:
    """Triton compiles its launchers in C when it first runs: the search it makes then, made before anything fails."""
    if getattr(getattr(knobs, "build", None), "impl", None) is not None:
        return None
    wanted = os.environ.get("CC")
    if wanted is not None:
        found = shutil.which(wanted)
        return None if found else f"triton needs a C compiler, and CC is {wanted!r}: no program"
    if any(map(shutil.which, ("gcc", "clang", "cc"))):
        return None
    return "triton needs a C compiler: there is no gcc and no clang, and CC is not set"


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("the backend triton does not run, others serve the GPU: %s", reason)


def _cannot_run(x: Tensor) -> str | None:
    if x.device.type == "cuda" and (reason := cannot_run()):
        _say_once(reason)
        return reason
    try:
        device_properties()
    except Exception as error:  # RuntimeError without a GPU, else what its driver raised
        return f"triton finds no device that it can serve: {error}"
    return None


def precision(x: Tensor) -> str:
    """`input_precision` of tl.dot: tf32 for float32 only where the caller allowed it for torch's own products."""
    allowed = x.dtype == torch.float32 and extension.allows_tf32()
    return "tf32" if allowed else "ieee"


cdiv = triton.cdiv
power_of_two = functools.lru_cache(triton.next_power_of_2)
