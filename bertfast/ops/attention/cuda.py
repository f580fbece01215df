"""The CUDA backend of this operation."""

from __future__ import annotations

from ... import extension
from .cpu import backward, forward

__all__ = ["backward", "forward", "supports"]


def supports(direction: str, *args) -> str | None:
    """None where the CUDA backend computes this, else the reason."""
    qkv = args[0] if direction == "forward" else args[1]
    tokens, _, heads, head_size = qkv.shape
    return extension.refuses_cuda(qkv, size=(tokens,), heads=(heads,), head_size=(head_size,))
