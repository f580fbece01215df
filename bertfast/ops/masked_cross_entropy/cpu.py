"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._native import supports as supports
from .._weights import operands


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, num_items: int | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `bertfast.ops.masked_cross_entropy`."""
    x = extension.with_dense_rows(x)
    (weight,), (weight_stride,), weight_dtype = operands(weight)
    (bias,) = extension.contiguous(bias)
    rows, count = _labelled(labels, ignore_index)
    targets = labels[rows]
    row_lse = x.new_empty(rows.numel(), dtype=torch.float32)
    logit = torch.empty_like(row_lse)
    extension.launch(
        "masked_cross_entropy_fwd", x, x=x.data_ptr(), weight=weight.data_ptr(), bias=pointer(bias),
        rows=rows.data_ptr(), labels=targets.data_ptr(), lse=row_lse.data_ptr(), logit=logit.data_ptr(),
        labelled=rows.numel(), vocabulary=weight.shape[0], k=x.shape[1], x_stride=x.stride(0),
        weight_stride=weight_stride, weight_dtype=weight_dtype, count=pointer(count),
    )  # fmt: skip
    lse = x.new_zeros(x.shape[0], dtype=torch.float32)
    lse[rows] = row_lse
    total = (row_lse - logit).sum()
    return total / _divisor(rows, count, num_items), lse


def backward(
    dloss: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, lse: Tensor, ignore_index: int,
    num_items: int | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.masked_cross_entropy`: gradients of x, weight, bias."""
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(weight)
    (bias,) = extension.contiguous(bias)
    rows, count = _labelled(labels, ignore_index)
    targets, row_lse = labels[rows], lse[rows]
    scale = dloss.float() / _divisor(rows, count, num_items)
    (tokens, k), vocabulary = x.shape, weight.shape[0]
    dx = x.new_zeros(tokens, k) if needs[0] else None
    new = x.new_empty if rows.numel() else x.new_zeros
    dweight = new(vocabulary, k) if needs[1] else None
    dbias = new(vocabulary) if needs[2] and bias is not None else None
    extension.launch(
        "masked_cross_entropy_bwd", x, x=x.data_ptr(), weight=weight.data_ptr(), bias=pointer(bias),
        rows=rows.data_ptr(), labels=targets.data_ptr(), lse=row_lse.data_ptr(), scale=scale.data_ptr(), dx=pointer(dx),
        dweight=pointer(dweight), dbias=pointer(dbias), labelled=rows.numel(), vocabulary=vocabulary, k=k,
        x_stride=x.stride(0), weight_stride=weight.stride(0), count=pointer(count),
    )  # fmt: skip
    return dx, dweight, dbias


def _labelled(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """The labelled rows; on a GPU, which nothing is read from, all rows, those first, and how many they are, [1]."""
    listed = labels != ignore_index
    if not extension.on_gpu(labels):
        return listed.nonzero().squeeze(1), None
    return listed.argsort(stable=True, descending=True), listed.sum().view(1)


def _divisor(rows: Tensor, count: Tensor | None, num_items: int | None) -> int | Tensor:
    """What the sum of the losses is divided by."""
    if num_items is not None:
        return num_items
    return rows.numel() if count is None else count.squeeze(0)
