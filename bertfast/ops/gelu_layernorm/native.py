"""Launcher of the C++ form."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from ..packed import buffer_of


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(x) if direction == "forward" else "no C++ backward yet"


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `bertfast.ops.gelu_layernorm`; only the first result unless `save`."""
    x = extension.with_dense_rows(x)
    bias, ln_weight, ln_bias = bias.contiguous(), ln_weight.contiguous(), ln_bias.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    out = x.new_empty(rows, n)
    pre = torch.empty_like(out) if save else None
    mean, rstd = extension.statistics(rows, save), extension.statistics(rows, save)
    packed = buffer_of(weight)
    extension.cpu.gelu_layernorm_fwd(
        x.data_ptr(), packed.data_ptr(), bias.data_ptr(), ln_weight.data_ptr(), ln_bias.data_ptr(), out.data_ptr(),
        pointer(pre), pointer(mean), pointer(rstd), rows, n, k, x.stride(0), eps, extension.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )  # fmt: skip
    return out, pre, mean, rstd
