"""How the forms of a GPU are run in tests: as they are where there is one, else executed on CPU tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

GPU_FORMS = ("triton", "triton_matmul")


@contextlib.contextmanager
def running(*forms: str, device: str = "cpu", **options) -> Iterator[object]:
    """Where the forms compute inside the block: an emulated device if one of them is a GPU's and there is none.

    options: those of triton_driver.emulated. Gives the emulated device, or None.
    """
    if device != "cpu" or not set(forms) & set(GPU_FORMS) or not _has_triton():
        yield None
        return
    from gpu_code.triton_driver import emulated

    with emulated(**options) as emulation:
        yield emulation


def _has_triton() -> bool:
    """Without Triton its forms refuse with the reason, and tests skip with it."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
