"""How the backends of a GPU are run in tests: as they are where there is one, else executed on CPU tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from gpu_code import nvcc

TRITON_BACKENDS = ("triton", "triton:torch")
GPU_BACKENDS = ("cuda", *TRITON_BACKENDS)


@contextlib.contextmanager
def running(*backends: str, device: str = "cpu", **options) -> Iterator[object]:
    """Where the backends compute inside the block: an emulated device if one of them is a GPU's and there is none.

    options: those of `emulated`. Gives the emulated device, or None. Without Triton or nvcc its backends
    refuse with the reason, and tests skip with it.
    """
    with contextlib.ExitStack() as stack:
        emulation = None
        if device == "cpu" and set(backends) & set(TRITON_BACKENDS) and _has_triton():
            from gpu_code.triton_driver import emulated

            emulation = stack.enter_context(emulated(**options))
        if device == "cpu" and "cuda" in backends and nvcc.find():
            from gpu_code.cuda_driver import emulated

            emulation = stack.enter_context(emulated(**options))
        yield emulation


@contextlib.contextmanager
def allowing_tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 may round their inputs, inside the block."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
