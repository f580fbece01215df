"""The CUDA backend of this operation."""

from __future__ import annotations

from torch import Tensor

from ... import extension
from .cpu import backward, forward

__all__ = ["backward", "forward", "supports"]

MOST_HEAD_SIZE = 128


def supports(direction: str, x: Tensor, *args) -> str | None:
    """None where the CUDA backend computes this, else the reason."""
    qkv = x if direction == "forward" else args[0]
    if qkv.shape[3] > MOST_HEAD_SIZE:
        return (
            f"heads of size {qkv.shape[3]}; the cuda backend computes sizes up to {MOST_HEAD_SIZE}"
        )
    return extension.refuses_cuda(qkv)
