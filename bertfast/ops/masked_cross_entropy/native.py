"""Launcher of the C++ form."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(x)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    num_items: int | None,
) -> tuple[Tensor, Tensor]:
    """See `bertfast.ops.masked_cross_entropy`."""
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(weight)
    bias = None if bias is None else bias.contiguous()
    rows = (labels != ignore_index).nonzero().squeeze(1)
    targets = labels[rows]
    row_lse = torch.empty(rows.numel(), dtype=torch.float32)
    logit = torch.empty_like(row_lse)
    extension.launch(
        "masked_cross_entropy_fwd", x,
        x.data_ptr(), weight.data_ptr(), pointer(bias), rows.data_ptr(), targets.data_ptr(), row_lse.data_ptr(),
        logit.data_ptr(), rows.numel(), weight.shape[0], x.shape[1], x.stride(0), weight.stride(0),
    )  # fmt: skip
    lse = torch.zeros(x.shape[0], dtype=torch.float32)
    lse[rows] = row_lse
    total = (row_lse - logit).sum()
    return total / (rows.numel() if num_items is None else num_items), lse


def backward(
    dloss: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, lse: Tensor, ignore_index: int,
    num_items: int | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.masked_cross_entropy`: gradients of x, weight, bias."""
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(weight)
    bias = None if bias is None else bias.contiguous()
    rows = (labels != ignore_index).nonzero().squeeze(1)
    targets, row_lse = labels[rows], lse[rows]
    count = rows.numel() if num_items is None else num_items
    scale = dloss.float() / count
    (tokens, k), vocabulary = x.shape, weight.shape[0]
    dx = torch.zeros(tokens, k, dtype=x.dtype) if needs[0] else None
    new = torch.empty if rows.numel() else torch.zeros
    dweight = new(vocabulary, k, dtype=x.dtype) if needs[1] else None
    dbias = new(vocabulary, dtype=x.dtype) if needs[2] and bias is not None else None
    extension.launch(
        "masked_cross_entropy_bwd", x,
        x.data_ptr(), weight.data_ptr(), pointer(bias), rows.data_ptr(), targets.data_ptr(), row_lse.data_ptr(),
        scale.data_ptr(), pointer(dx), pointer(dweight), pointer(dbias), rows.numel(), vocabulary, k, x.stride(0),
        weight.stride(0),
    )  # fmt: skip
    return dx, dweight, dbias
