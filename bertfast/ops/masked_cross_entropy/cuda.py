"""The CUDA backend of this operation."""

from __future__ import annotations

from ... import extension
from .cpu import backward, forward

__all__ = ["backward", "forward", "supports"]


def supports(direction: str, *args) -> str | None:
    """None where the CUDA backend computes this, else the reason."""
    x, weight = args[:2] if direction == "forward" else args[1:3]
    if weight.numel() == 0:
        return "an empty weight"
    return extension.refuses_cuda(x)
