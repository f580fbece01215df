"""The dtypes of an operation's arguments under torch.autocast."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ._contract import through_library
from ._weights import KeptParameter, RoundedWeight


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The arguments of a product under torch.autocast, x first: in its dtype, as torch's own linear has them.

    A prepacked or quantized weight keeps its dtype, and the others follow it. float64 is left alone, as torch leaves
    it. Where no gradient is wanted on a CPU, no rounded copy of a weight is made: kernels round what they read.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    kept = [tensor.dtype for tensor in given if isinstance(tensor, KeptParameter)]
    dtype = kept[0] if kept else torch.get_autocast_dtype(given[0].device.type)
    if any(tensor.dtype == torch.float64 for tensor in given):
        return list(tensors)
    reads = given[0].is_cpu and not torch.is_grad_enabled() and not through_library()
    return [
        t if t is None or t.dtype == dtype
        else RoundedWeight(t, dtype) if reads and t is not tensors[0] and t.dtype is torch.float32 and t.ndim == 2
        else t.to(dtype)
        for t in tensors
    ]  # fmt: skip


def autocast_beside(x: Tensor, *tensors: Tensor) -> list[Tensor]:
    """What LN takes besides a product of x under torch.autocast: in the widest dtype among them all.

    float32 stays, as it does where torch's own LN takes a residual in float32.
    """
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), x.dtype)
    return [t if t.dtype == dtype else t.to(dtype) for t in tensors]
