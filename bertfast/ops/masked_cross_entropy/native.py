"""Launcher of the C++ form."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(x) if direction == "forward" else "no C++ backward yet"


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, num_items: int | None
) -> tuple[Tensor, Tensor]:
    """See `bertfast.ops.masked_cross_entropy`."""
    x, weight = extension.with_dense_rows(x), extension.with_dense_rows(weight)
    bias = None if bias is None else bias.contiguous()
    rows = (labels != ignore_index).nonzero().squeeze(1)
    targets = labels[rows]
    row_lse = torch.empty(rows.numel(), dtype=torch.float32)
    logit = torch.empty_like(row_lse)
    extension.cpu.masked_cross_entropy_fwd(
        x.data_ptr(), weight.data_ptr(), pointer(bias), rows.data_ptr(), targets.data_ptr(), row_lse.data_ptr(),
        logit.data_ptr(), rows.numel(), weight.shape[0], x.shape[1], x.stride(0), weight.stride(0),
        extension.DTYPE_CODES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
    lse = torch.zeros(x.shape[0], dtype=torch.float32)
    lse[rows] = row_lse
    total = (row_lse - logit).sum()
    return total / (rows.numel() if num_items is None else num_items), lse
