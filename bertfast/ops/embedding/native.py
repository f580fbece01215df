"""Launcher of the native forms, C++ and CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._philox import keep_scale, threshold

MOST_FEATURES = 8192


def supports(direction: str, *args) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(_first(direction, args))


def _first(direction: str, args: tuple) -> Tensor:
    """The word table, or the rows in its place."""
    first = 1 if direction == "forward" else 2
    return args[first] if args[first] is not None else args[first + 1]


def _cuda_supports(direction: str, *args) -> str | None:
    source = _first(direction, args)
    if source.shape[1] > MOST_FEATURES:
        return f"{source.shape[1]} features; the cuda form holds rows of at most {MOST_FEATURES}"
    return extension.refuses_cuda(source)


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
    mean, rstd = extension.statistics(word, rows, save), extension.statistics(word, rows, save)
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    extension.launch(
        "embedding_fwd", word,
        pointer(input_ids), position_ids.data_ptr(), token_type_ids.data_ptr(), word.data_ptr(), position.data_ptr(),
        segment.data_ptr(), ln_weight.data_ptr(), ln_bias.data_ptr(), out.data_ptr(), pointer(mean), pointer(rstd),
        pointer(cu_seqlens), rows, n, word.stride(0), 0 if cu_seqlens is None else cu_seqlens.numel() - 1, eps,
        pointer(seed), threshold(p), keep_scale(p), [t.shape[0] for t in (word, position, segment)],
    )  # fmt: skip
    return out, mean, rstd


def backward(
    dout: Tensor, input_ids: Tensor | None, word: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor,
    position: Tensor, token_type_ids: Tensor, segment: Tensor, ln_weight: Tensor, mean: Tensor, rstd: Tensor, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, padding_idx: int, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.embedding`: gradients of the three tables (or of inputs_embeds), ln_weight, ln_bias."""
    rows_given = inputs_embeds is not None
    source = extension.with_dense_rows(inputs_embeds if rows_given else word)
    dout, position, segment, ln_weight = extension.contiguous(dout, position, segment, ln_weight)
    ids = [
        None if rows_given else input_ids.contiguous(),
        position_ids.contiguous(),
        token_type_ids.contiguous(),
    ]
    wanted = [needs[0] and not rows_given, needs[2], needs[3]]
    tables = [
        torch.zeros_like(t) if w else None
        for w, t in zip(wanted, (source, position, segment), strict=True)
    ]
    orders = [
        None if t is None else torch.argsort(i, stable=True)
        for t, i in zip(tables, ids, strict=True)
    ]
    dinputs = torch.empty_like(dout) if rows_given and needs[1] else None
    rows, n = dout.shape
    dln_weight, dln_bias = extension.gradients(dout, ((n,), (n,)), (True, True))
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    extension.launch(
        "embedding_bwd", dout,
        dout.data_ptr(), *(pointer(i) for i in ids), source.data_ptr(), position.data_ptr(), segment.data_ptr(),
        ln_weight.data_ptr(), mean.data_ptr(), rstd.data_ptr(), [pointer(o) for o in orders],
        [pointer(t) for t in tables], padding_idx, pointer(dinputs), dln_weight.data_ptr(), dln_bias.data_ptr(),
        pointer(cu_seqlens), rows, n, source.stride(0), 0 if cu_seqlens is None else cu_seqlens.numel() - 1,
        pointer(seed), threshold(p), keep_scale(p), [t.shape[0] for t in (source, position, segment)],
    )  # fmt: skip
    return tables[0], dinputs, tables[1], tables[2], dln_weight, dln_bias


cuda = SimpleNamespace(forward=forward, backward=backward, supports=_cuda_supports)
