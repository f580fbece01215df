"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import extension
from ...extension import pointer
from .._native import dropout, sequences
from .._native import supports as supports


def forward(
    input_ids: Tensor | None, word: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor, position: Tensor,
    token_type_ids: Tensor, segment: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, padding_idx: int, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.embedding`; only the first result unless `save`."""
    word = extension.with_dense_rows(word if inputs_embeds is None else inputs_embeds)
    position, segment = position.contiguous(), segment.contiguous()
    position_ids, token_type_ids = position_ids.contiguous(), token_type_ids.contiguous()
    input_ids = None if inputs_embeds is not None else input_ids.contiguous()
    ln_weight, ln_bias = ln_weight.contiguous(), ln_bias.contiguous()
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
    example_ids = None if example_ids is None else example_ids.contiguous()
    rows, n = position_ids.shape[0], word.shape[1]
    out = word.new_empty(rows, n)
    mean, rstd = extension.statistics(word, rows, save), extension.statistics(word, rows, save)
    extension.launch(
        "embedding_fwd", word, input_ids=pointer(input_ids), position_ids=position_ids.data_ptr(),
        segment_ids=token_type_ids.data_ptr(), word=word.data_ptr(), position=position.data_ptr(),
        segment=segment.data_ptr(), ln_weight=ln_weight.data_ptr(), ln_bias=ln_bias.data_ptr(), out=out.data_ptr(),
        mean=pointer(mean), rstd=pointer(rstd), rows=rows, n=n, word_stride=word.stride(0), eps=eps,
        table_rows=[word.shape[0], position.shape[0], segment.shape[0]], cu_seqlens=pointer(cu_seqlens),
        sequences=sequences(cu_seqlens), dropout=dropout(p, seed, example_ids),
    )  # fmt: skip
    return out, mean, rstd


def backward(
    dout: Tensor, input_ids: Tensor | None, word: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor,
    position: Tensor, token_type_ids: Tensor, segment: Tensor, ln_weight: Tensor, mean: Tensor, rstd: Tensor, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, padding_idx: int, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.embedding`: gradients of the three tables (or of inputs_embeds), ln_weight, ln_bias."""
    rows_given = inputs_embeds is not None
    source = extension.with_dense_rows(inputs_embeds if rows_given else word)
    dout, position, segment, ln_weight = extension.contiguous(dout, position, segment, ln_weight)
    ids = extension.contiguous(input_ids, position_ids, token_type_ids)
    cu_seqlens, example_ids = extension.contiguous(cu_seqlens, example_ids)
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
    extension.launch(
        "embedding_bwd", dout, dout=dout.data_ptr(), input_ids=pointer(ids[0]), position_ids=ids[1].data_ptr(),
        segment_ids=ids[2].data_ptr(), word=source.data_ptr(), position=position.data_ptr(), segment=segment.data_ptr(),
        ln_weight=ln_weight.data_ptr(), mean=mean.data_ptr(), rstd=rstd.data_ptr(),
        tables=[
            {"ids": pointer(i), "order": pointer(o), "dtable": pointer(t), "skip": skip}
            for i, o, t, skip in zip(ids, orders, tables, (padding_idx, -1, -1), strict=True)
        ],
        dinputs=pointer(dinputs), dln_weight=dln_weight.data_ptr(), dln_bias=dln_bias.data_ptr(), rows=rows, n=n,
        word_stride=source.stride(0), table_rows=[source.shape[0], position.shape[0], segment.shape[0]],
        cu_seqlens=pointer(cu_seqlens), sequences=sequences(cu_seqlens), dropout=dropout(p, seed, example_ids),
    )  # fmt: skip
    return tables[0], dinputs, tables[1], tables[2], dln_weight, dln_bias
