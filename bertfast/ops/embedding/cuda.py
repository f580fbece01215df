"""The CUDA backend of this operation."""

from __future__ import annotations

from ... import extension
from .cpu import backward, forward, source_of

__all__ = ["backward", "forward", "supports"]


def supports(direction: str, *args) -> str | None:
    """None where the CUDA backend computes this, else the reason."""
    source = source_of(direction, args)
    rows = (args[3] if direction == "forward" else args[0]).shape[0]
    return extension.refuses_cuda(source, size=(rows,), features=(source.shape[1],))
