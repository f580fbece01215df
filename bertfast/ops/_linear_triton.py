"""x · Wᵀ + b around Triton's kernels, by Triton's own product or by torch's: `dispatch.product` says which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch
from . import _gemm_triton
from ._gelu_triton import gelu_of
from ._triton import refuses
from ._weights import unpacked

PRODUCTS = ("torch",)  # besides the own one


def supports(call) -> str | None:
    return refuses(call.lead, product=True)


def linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gelu: bool = False, save: bool = False
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `_gemm_triton.linear`."""
    weights = [unpacked(weight) for weight in weights]
    if dispatch.product() != "torch":
        return _gemm_triton.linear(x, weights, biases, gelu, save)
    pre = torch.addmm(_joined(biases), x, _joined(weights).t())
    return (gelu_of(pre), pre if save else None) if gelu else (pre, None)


def linear_backward(
    dout: Tensor, x: Tensor, weights: Sequence[Tensor], needs: Sequence[bool], pre: Tensor | None = None
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """As `_gemm_triton.linear_backward`."""
    weights = [unpacked(weight) for weight in weights]
    if dispatch.product() != "torch":
        return _gemm_triton.linear_backward(dout, x, weights, needs, pre)
    dout, count = dout if pre is None else gelu_of(pre, dout), len(weights)
    parts = list(enumerate(dout.chunk(count, 1)))
    return (
        dout @ _joined(weights) if needs[0] else None,
        *(part.t() @ x if needs[1 + i] else None for i, part in parts),
        *(part.sum(0) if needs[1 + count + i] else None for i, part in parts),
    )


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of all: to copy weights takes less than to stack three results, unless tokens are few."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
