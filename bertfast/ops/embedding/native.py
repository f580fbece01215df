"""Launcher of the C++ form."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._philox import keep_scale, threshold


def supports(direction: str, *args) -> str | None:
    """None where the C++ form computes this, else the reason."""
    if direction != "forward":
        return "no C++ backward yet"
    return extension.refuses(args[1] if args[1] is not None else args[2])


def forward(
    input_ids: Tensor | None, word: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor, position: Tensor,
    token_type_ids: Tensor, segment: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, padding_idx: int, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.embedding`; only the first result unless `save`."""
    word = extension.with_dense_rows(word if inputs_embeds is None else inputs_embeds)
    position, segment = position.contiguous(), segment.contiguous()
    position_ids, token_type_ids = position_ids.contiguous(), token_type_ids.contiguous()
    input_ids = None if inputs_embeds is not None else input_ids.contiguous()
    ln_weight, ln_bias = ln_weight.contiguous(), ln_bias.contiguous()
    rows, n = position_ids.shape[0], word.shape[1]
    out = word.new_empty(rows, n)
    mean, rstd = extension.statistics(rows, save), extension.statistics(rows, save)
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    extension.cpu.embedding_fwd(
        pointer(input_ids), position_ids.data_ptr(), token_type_ids.data_ptr(), word.data_ptr(), position.data_ptr(),
        segment.data_ptr(), ln_weight.data_ptr(), ln_bias.data_ptr(), out.data_ptr(), pointer(mean), pointer(rstd),
        pointer(cu_seqlens), rows, n, word.stride(0), 0 if cu_seqlens is None else cu_seqlens.numel() - 1, eps,
        pointer(seed), threshold(p), keep_scale(p), extension.DTYPE_CODES[word.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out, mean, rstd
