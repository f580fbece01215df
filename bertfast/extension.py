"""The native modules: the one place where tensors become pointers.

Kernels (`bertfast._cpu`, `bertfast._cuda`) know pointers, sizes and dtype codes; this module knows torch. Outputs are
allocated here and in the `cpu.py` files, on the caller's side, so the native code needs no torch to be built.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._scope import scope

try:
    from . import _cpu as cpu

    REASON: str | None = None
except ImportError as error:  # pragma: no cover - an installation without native code
    cpu = None
    REASON = f"native extension not built: {error}"

try:
    from . import _cuda as cuda

    CUDA_REASON: str | None = None
except ImportError as error:  # an installation without CUDA kernels
    cuda = None
    absent = importlib.util.find_spec("bertfast._cuda") is None
    CUDA_REASON = "CUDA kernels not built" + ("" if absent else f": {error}")

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _after_fork() -> None:
    """One thread in a forked child of a process whose kernels ran on several, as torch's operations then did too: their
    pool does not survive the fork, and the first parallel one would wait for it for ever.
    """
    if cpu is not None and cpu.ran_in_parallel():
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)


def on_gpu(x: Tensor) -> bool:
    """Whether `_cuda` computes on tensors like `x`; `_cpu` does on all others."""
    return x.device.type == "cuda"


def refuses(x: Tensor) -> str | None:
    """Why the C++ backend cannot compute on tensors like `x`, or None."""
    if cpu is None:
        return REASON
    if x.device.type != "cpu":
        return f"tensors on {x.device.type}; the cpu backend computes on cpu"
    if x.dtype not in DTYPE_CODES:
        return f"dtype {x.dtype}; the cpu backend computes in float32, bfloat16 and float16"
    return None


def refuses_cuda(x: Tensor, **sizes: tuple[int, ...]) -> str | None:
    """Why the CUDA backend cannot compute on tensors like `x` or on problems of these sizes, or None.

    Args:
        sizes: by the names of `_cuda.limits` (csrc/common/limits.h), to which the kernels hold their callers.
    """
    if cuda is None:
        return CUDA_REASON
    if not on_gpu(x):
        return f"tensors on {x.device.type}; the cuda backend computes on cuda"
    if x.dtype not in DTYPE_CODES:
        return f"dtype {x.dtype}; the cuda backend computes in float32, bfloat16 and float16"
    for name, given in sizes.items():
        least, most = cuda.limits[name]
        for size in given:
            if not least <= size <= most:
                return f"{name} {size}; the cuda backend computes {least} to {most}"
    return driver_refuses() or _card_refuses(x.device)


@functools.cache
def driver_refuses() -> str | None:
    """Why the CUDA kernels cannot be loaded on this machine, or None: a driver serves a toolkit of its own major
    version and older ones.
    """
    driver, major = cuda.driver_version(), cuda.toolkit_version() // 1000
    floor, oldest = _FLOORS.get(major, (major * 1000, None))
    advice = f" (driver {oldest} or newer)" if oldest else ""
    if driver == 0:
        return f"no CUDA driver (libcuda.so.1) on this machine; the kernels need CUDA {_version(floor)}{advice}"
    if driver < floor:
        needed = f"the kernels need {_version(floor)}{advice}"
        return f"the driver serves CUDA {_version(driver)}, {needed}"
    return None


# By the toolkit's major version: the CUDA that a driver must serve, and the oldest such driver for Linux. Drivers
# before 12.4 cannot read what nvcc's --compress-mode=size packs.
_FLOORS = {12: (12040, 550), 13: (13000, 580)}


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@functools.cache
def _card_refuses(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(device)
    how = coverage(cuda.targets(), capability)
    return None if how.startswith("runs") else f"sm_{capability[0]}{capability[1]} is {how}"


def coverage(targets: str, capability: tuple[int, int]) -> str:
    """How kernels compiled for `targets`, as in 80,90+PTX, run on a GPU of that compute capability: "runs ..." or "not
    covered: ...".
    """
    major, minor = capability
    names = targets.removesuffix("+PTX").split(",")
    own = [name for name in names if int(name[:-1]) == major and int(name[-1]) <= minor]
    if own:
        return f"runs code of sm_{max(own, key=int)}"
    if targets.endswith("+PTX") and major >= 8:
        return "runs PTX, which the driver compiles at the first call"
    if major < 8:
        return "not covered: the kernels need sm_80 or newer"
    return f"not covered: build with BERTFAST_CUDA_ARCHS={major}{minor}"


def launch(name: str, like: Tensor, /, **fields) -> None:
    """Run the kernel `name` in the dtype and on the device of `like`.

    Args:
        fields: the fields of its struct in `csrc/<operation>/op.h` by name, but those of BF_WHERE, which are given
            here: addresses as integers (0 for none), sizes, numbers; lists of these, dicts for nested structs. On a GPU
            the kernel runs in the current stream, with a workspace from torch's allocator, and uses tf32 where torch's
            own products may.

    Raises:
        TypeError: a field is missing, unknown or of another type; the message names the kernel and the field.
    """
    if not on_gpu(like):
        fields["dtype"] = DTYPE_CODES[like.dtype]
        fields["threads"], fields["gpu"] = torch.get_num_threads(), None
        getattr(cpu, name)(fields)
        return
    with current_stream(like.device) as stream:
        fields |= where(like, stream)
        workspace = like.new_empty(workspace_bytes(name, fields), dtype=torch.uint8)
        fields["gpu"]["workspace"] = workspace.data_ptr()
        getattr(cuda, name)(fields)


def where(like: Tensor, stream: int) -> dict[str, Any]:
    """The fields of BF_WHERE for a GPU, yet without a workspace."""
    tf32, here = like.dtype == torch.float32 and allows_tf32(), scope()
    gpu = {
        "stream": stream, "workspace": 0, "tf32": tf32, "invariant": here.invariant,
        "cublaslt": here.product == "cublaslt", "used": 0,
    }  # fmt: skip
    return {"dtype": DTYPE_CODES[like.dtype], "threads": 1, "gpu": gpu}


def workspace_bytes(name: str, fields: dict[str, Any]) -> int:
    """How much device memory the kernel `name` of `_cuda` asks for; addresses only tell which results are wanted."""
    return getattr(cuda, f"{name}_workspace")(fields)


def record(name: str, fields: dict[str, Any]) -> Any:
    """A CUDA graph of what the kernel `name` would launch, which reads the addresses in `fields` at each replay.

    Nothing runs. Raises RuntimeError where CUDA refuses.
    """
    return getattr(cuda, f"{name}_graph")(fields)


def replay(graph: Any, stream: int) -> None:
    """Launch what was recorded on a stream of the current GPU."""
    graph.replay(stream)


def allows_tf32() -> bool:
    """Whether torch's own products of float32 may round their inputs.

    From torch 2.9 on `fp32_precision` says so, and where a program has set it, reading `allow_tf32` raises.
    """
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


@contextlib.contextmanager
def current_stream(device: torch.device) -> Iterator[int]:
    """Makes the GPU current; gives the handle of its current stream."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def pointer(tensor: Tensor | None) -> int:
    """The address of the first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def pointers(tensors: Sequence[Tensor | None]) -> list[int]:
    """The address of each."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def with_dense_rows(x: Tensor) -> Tensor:
    """`x` [rows, columns] itself if each row's elements are neighbours, else a contiguous copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors themselves where contiguous, else copies; None for None."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def scatter_rows(x: Tensor, places: Tensor, count: int) -> Tensor:
    """[count,H] on the CPU, any dtype: the rows of x [T,H] at `places` (int64 [T]), zeros elsewhere.

    Raises ValueError for a place outside. torch's own goes over the output three times, each in an OpenMP region, whose
    threads then spin on the cores that the next call's kernels want.
    """
    x, places = x.contiguous(), places.contiguous()
    out = x.new_empty(count, x.shape[1])
    row = x.shape[1] * x.element_size()
    where, threads = (places.data_ptr(), x.shape[0], out.data_ptr()), torch.get_num_threads()
    cpu.scatter_rows(x.data_ptr(), *where, count, row, threads)
    return out


def gradients(
    x: Tensor, shapes: Sequence[tuple[int, ...]], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Memory for the wanted gradients of an operation, in the dtype of x [rows, k]; None for the others.

    With no rows nothing is computed and the gradients are zeros.
    """
    new = x.new_empty if x.shape[0] else x.new_zeros
    pairs = zip(shapes, needs, strict=True)
    return tuple(new(shape) if wanted else None for shape, wanted in pairs)


def statistics(x: Tensor, shape: int | tuple[int, ...], save: bool) -> Tensor | None:
    """Uninitialised fp32 on the device of x for a saved statistic, or None."""
    return x.new_empty(shape, dtype=torch.float32) if save else None


def describe() -> dict:
    """What this installation can run.

    Returns:
        dict with `built` (bool), `reason` (why not, or None), `instruction_sets` (those of this build that run here,
        narrow to wide), `active` (the one in use), `threads` (what the kernels use now).
    """
    built = cpu is not None
    return {
        "built": built,
        "reason": REASON,
        "instruction_sets": cpu.variants() if built else [],
        "active": cpu.variant() if built else None,
        "threads": torch.get_num_threads() if built else 0,
    }
