"""The CUDA backend of this operation."""

from ... import extension
from .cpu import backward as backward
from .cpu import forward as forward


def supports(call) -> str | None:
    tokens, _, heads, head_size = call.qkv.shape
    return extension.refuses_cuda(call.lead, size=(tokens,), heads=(heads,), head_size=(head_size,))
