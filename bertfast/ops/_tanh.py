"""tanh, for the few rows of a pooler.

torch's own opens a parallel region of MKL for more than 64 numbers: where a core is busy the region waits for it,
milliseconds for 3 us of work, and its threads then spin on the cores that the next call's kernels want.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dispatch, extension
from ._contract import through_library


def tanh(x: Tensor) -> Tensor:
    """tanh(x), differentiable as torch's: float32 on a CPU by the C++ kernels, on the calling thread; else torch's."""
    if through_library() or not _serves(x):
        return torch.tanh(x)
    return _Tanh.apply(x) if torch.is_grad_enabled() and x.requires_grad else _compute(x)


def _serves(x: Tensor) -> bool:
    fits = x.dtype is torch.float32 and x.is_cpu and type(x) is Tensor
    return fits and extension.cpu is not None and dispatch.backend() in ("auto", "cpu")


def _compute(x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    extension.cpu.tanh(x.data_ptr(), out.data_ptr(), x.numel())
    return out


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = _compute(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, dout):
        return torch.ops.aten.tanh_backward(dout, *ctx.saved_tensors)
