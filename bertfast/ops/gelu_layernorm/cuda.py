"""The CUDA backend of this operation."""

from __future__ import annotations

from torch import Tensor

from ... import extension
from .cpu import backward, forward

__all__ = ["backward", "forward", "supports"]


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the CUDA backend computes this, else the reason."""
    return extension.refuses_cuda(x)
