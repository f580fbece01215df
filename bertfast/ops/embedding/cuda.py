"""The CUDA backend of this operation."""

from __future__ import annotations

from ... import extension
from .cpu import backward, forward, source_of

__all__ = ["backward", "forward", "supports"]

MOST_FEATURES = 8192


def supports(direction: str, *args) -> str | None:
    """None where the CUDA backend computes this, else the reason."""
    source = source_of(direction, args)
    if source.shape[1] > MOST_FEATURES:
        return f"{source.shape[1]} features; the cuda backend holds rows of at most {MOST_FEATURES}"
    return extension.refuses_cuda(source)
