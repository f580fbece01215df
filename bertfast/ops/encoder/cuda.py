"""The CUDA backend of this operation."""

from ... import extension
from .cpu import backward as backward
from .cpu import forward as forward
from .cpu import forward_saving as forward_saving
from .cpu import odd, sizes_of


def supports(call) -> str | None:
    """None where the CUDA backend computes this call, else the reason."""
    if reason := extension.refuses_cuda(call.x) or odd(call):
        return reason
    sizes = sizes_of(call)
    hidden, inner, heads, head_size = (
        sizes[name] for name in ("hidden", "inner", "heads", "head_size")
    )
    return extension.refuses_cuda(
        call.x,
        size=(sizes["tokens"], hidden, inner, heads * head_size),
        features=(hidden,),
        heads=(heads,),
        head_size=(head_size,),
    )
