"""A product that no fused operation holds: the pooler's, a classifier's, the decoder's where scores are wanted."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dispatch, ops


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias: [T,K] -> [T,N].

    On a CPU, and inside `batch_invariant`, the bits of a row depend on the row alone, which those of torch's product do
    not: it is computed as `qkv_projection` of the three thirds of the weight.

    Args:
        weight: [N,K]. bias: [N] or None.
    """
    traced = torch.compiler.is_compiling()  # which sees no context variables
    if not x.is_cpu and (traced or not dispatch.is_batch_invariant()):
        return F.linear(x, weight, bias)
    count = weight.shape[0]
    if bias is None:
        bias = weight.new_zeros(count)
    if rest := -count % 3:
        weight, bias = F.pad(weight, (0, 0, 0, rest)), F.pad(bias, (0, rest))
    weights, biases = weight.chunk(3), bias.chunk(3)
    with contextlib.nullcontext() if traced else dispatch.labelled("linear"):
        out = ops.qkv_projection(x, *weights, *biases, num_heads=1).flatten(1)
    return out[:, :count] if rest else out
