"""The CUDA backend of this operation."""

from ... import extension
from .cpu import backward as backward
from .cpu import forward as forward


def supports(call) -> str | None:
    rows, features = call.position_ids.shape[0], call.position.shape[1]
    return extension.refuses_cuda(call.lead, size=(rows,), features=(features,))
