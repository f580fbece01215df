"""The native module: the one place where tensors become pointers.

Kernels (`bertfast._cpu`) know pointers, sizes and dtype codes; this module knows torch. Outputs are allocated here and
in the `native.py` files, on the caller's side, so the native code needs no torch to be built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

try:
    # torch first: its libgomp is then the one that the module finds by name, so there is one pool of threads.
    from . import _cpu as cpu

    REASON: str | None = None
except ImportError as error:  # pragma: no cover - an installation without native code
    cpu = None
    REASON = f"native extension not built: {error}"

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def refuses(x: Tensor) -> str | None:
    """Why the C++ form cannot compute on tensors like `x`, or None."""
    if cpu is None:
        return REASON
    if x.device.type != "cpu":
        return f"tensors on {x.device.type}; the cpu form computes on cpu"
    if x.dtype not in DTYPE_CODES:
        return f"dtype {x.dtype}; the cpu form computes in float32, bfloat16 and float16"
    return None


def pointer(tensor: Tensor | None) -> int:
    """The address of the first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def with_dense_rows(x: Tensor) -> Tensor:
    """`x` [rows, columns] itself if each row's elements are neighbours, else a contiguous copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """The tensors themselves where contiguous, else copies."""
    return [tensor.contiguous() for tensor in tensors]


def gradients(
    x: Tensor, shapes: Sequence[tuple[int, ...]], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Memory for the wanted gradients of a product, in the dtype of x [rows, k]; None for the others.

    With no rows nothing is computed and the gradients are zeros.
    """
    new = x.new_empty if x.shape[0] else x.new_zeros
    return tuple(
        new(shape) if wanted else None for shape, wanted in zip(shapes, needs, strict=True)
    )


def statistics(count: int, save: bool) -> Tensor | None:
    """An uninitialised fp32 [count] for a saved statistic, or None."""
    return torch.empty(count, dtype=torch.float32) if save else None


def describe() -> dict:
    """What this installation can run.

    Returns:
        dict with `built` (bool), `reason` (why not, or None), `instruction_sets` (those of this build that run here,
        narrow to wide), `active` (the one in use), `threads` (what the kernels use now), `openmp` (the runtime's file).
    """
    if cpu is None:
        return {
            "built": False,
            "reason": REASON,
            "instruction_sets": [],
            "active": None,
            "threads": 0,
            "openmp": None,
        }
    return {
        "built": True,
        "reason": None,
        "instruction_sets": cpu.variants(),
        "active": cpu.variant(),
        "threads": cpu.usable_threads(torch.get_num_threads()),
        "openmp": _openmp_file(),
    }


def _openmp_file() -> str | None:
    try:
        with open("/proc/self/maps") as maps:
            files = {line.split()[-1] for line in maps if "omp" in line.rsplit("/", 1)[-1]}
    except OSError:
        return None
    return ", ".join(sorted(files)) or None
