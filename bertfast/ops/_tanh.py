"""tanh, for the few rows of a pooler.

torch's own opens a parallel region of MKL for more than 64 numbers: where a core is busy the region waits for it,
milliseconds for 3 us of work, and its threads then spin on the cores that the next call's kernels want.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch, extension
from ._contract import define, through_library


def tanh(x: Tensor) -> Tensor:
    """tanh(x), differentiable as torch's: float32 on a CPU by the C++ kernels, on the calling thread; else torch's."""
    if x.dtype is not torch.float32 or not x.is_cpu:
        return torch.tanh(x)
    if through_library() or (torch.is_grad_enabled() and x.requires_grad):
        return _OP(x)
    return _compute(x)


def _compute(x: Tensor) -> Tensor:
    x = x.contiguous()
    if extension.cpu is None or dispatch.backend() not in ("auto", "cpu"):
        return torch.tanh(x)
    out = torch.empty_like(x)
    extension.cpu.tanh(x.data_ptr(), out.data_ptr(), x.numel())
    return out


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output)


def _backward(ctx, dout):
    return torch.ops.aten.tanh_backward(dout, *ctx.saved_tensors)


_OP = define(
    "tanh(Tensor x) -> Tensor",
    _compute,
    lambda x: torch.empty_like(x, memory_format=torch.contiguous_format),
)
torch.library.register_autograd("bertfast::tanh", _backward, setup_context=_setup)
