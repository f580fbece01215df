"""The CUDA backend of this operation."""

from __future__ import annotations

from ... import extension
from .cpu import backward as backward
from .cpu import forward as forward


def supports(call) -> str | None:
    """None where the CUDA backend computes this call, else the reason."""
    tokens, _, heads, head_size = call.qkv.shape
    return extension.refuses_cuda(call.lead, size=(tokens,), heads=(heads,), head_size=(head_size,))
