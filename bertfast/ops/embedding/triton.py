"""Launcher of the Triton backend: three gathers, their sum, LN and dropout in one kernel.

The gradients of the tables need no dense one-hot and no atomics: the indices of all tables are sorted together, and
the sorted list is cut into chunks of equal length. A chunk adds up the runs of equal indices that lie in it and writes
those that are whole; a run that crosses chunks is finished by a second kernel, from the sums of its chunks in their
order. So two rows that share all tokens are as parallel as many rows, and the result never changes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...extension import with_dense_rows
from .. import _triton
from .._layernorm_triton import (
    column_sums,
    drop,
    dropout_of,
    load_row,
    normalize,
    normalize_gradient,
    pick,
    refuses,
    row_table,
    runs,
    store_sums,
)
from .._triton import Config, Table, cdiv, registers

_FORWARD = row_table("embedding_forward", narrow=(1024, 4), wide=(2048, 8))
_BACKWARD = row_table("embedding_backward", narrow=(1024, 4), wide=(4096, 16))
_RUNS = Table("embedding_runs", {80: {"all": Config({"BLOCK_N": 256}, num_warps=1, num_stages=1)}})
_LONG_RUNS = Table(
    "embedding_long_runs",
    {80: {"all": Config({"BLOCK_CHUNKS": 32, "BLOCK_N": 64}, num_warps=4, num_stages=1)}},
)
_REGISTERS = 128  # of a thread in backward
_CHUNK = 16  # sorted indices that one block walks, at least
_CHUNKS = 2048  # chunks at most: the second kernel walks those of one run


@triton.jit
def _index(ids_ptr, token, live):
    """The row of each token in its table; the token itself without indices."""
    if ids_ptr is None:
        return token.to(tl.int64)
    else:
        return tl.load(ids_ptr + token, mask=live, other=0)


@triton.jit
def _gather(ids_ptr, table_ptr, stride, rows, token, live, columns, features):
    """Rows of a table as fp32 [ROWS, COLUMNS], NaN where the index is outside, 0 beyond the features."""
    index = _index(ids_ptr, token, live)
    valid = (index >= 0) & (index < rows)
    inside = live & (columns < features)
    values = tl.load(table_ptr + index * stride + columns, mask=inside & valid, other=0.0)
    return tl.where(inside & ~valid, float("nan"), values.to(tl.float32))


@triton.jit
def _sum_of_rows(
    ids_ptr, source_ptr, source_stride, source_rows, position_ids_ptr, position_ptr, position_rows, segment_ids_ptr,
    segment_ptr, segment_rows, token, live, columns, features,
):  # fmt: skip
    """source[id] + position[id] + segment[id] in fp32 [ROWS, COLUMNS]."""
    z = _gather(ids_ptr, source_ptr, source_stride, source_rows, token, live, columns, features)
    z += _gather(
        position_ids_ptr, position_ptr, features, position_rows, token, live, columns, features
    )
    z += _gather(
        segment_ids_ptr, segment_ptr, features, segment_rows, token, live, columns, features
    )
    return z


@triton.jit(do_not_specialize=["tokens", "source_rows", "sequences", "steps", "threshold"])
def _embedding_fwd_kernel(
    ids_ptr, source_ptr, source_stride, source_rows, position_ids_ptr, position_ptr, position_rows, segment_ids_ptr,
    segment_ptr, segment_rows, gain_ptr, shift_ptr, out_ptr, mean_ptr, rstd_ptr, tokens, features, eps, seed_ptr,
    examples_ptr, starts_ptr, sequences, steps, threshold, scale, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """out = dropout(LN(sum of rows)), and the statistics where they are kept."""
    ROWS: tl.constexpr = (TILE + COLUMNS - 1) // COLUMNS
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    live = token < tokens
    inside = live & (columns < features)
    z = _sum_of_rows(
        ids_ptr, source_ptr, source_stride, source_rows, position_ids_ptr, position_ptr, position_rows, segment_ids_ptr,
        segment_ptr, segment_rows, token, live, columns, features,
    )  # fmt: skip
    normal, mean, rstd = normalize(z, inside, features, eps)
    if mean_ptr is not None:
        tl.store(mean_ptr + token, mean, mask=live)
        tl.store(rstd_ptr + token, rstd, mask=live)
    gain, shift = load_row(gain_ptr, columns, features), load_row(shift_ptr, columns, features)
    out = normal * gain + shift
    out = drop(
        out, token, seed_ptr, examples_ptr, starts_ptr, sequences, steps, threshold, scale, COLUMNS
    )
    offsets = token.to(tl.int64) * features + columns
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _store_key(key_ptr, ids_ptr, token, live, rows, first, skipped, dead):
    """The index of each token among the rows of all tables, `dead` where no row gets its gradient."""
    if key_ptr is not None:
        index = _index(ids_ptr, token, live)
        valid = (index >= 0) & (index < rows) & (index != skipped)
        tl.store(key_ptr + token, tl.where(valid, index + first, dead).to(tl.int32), mask=live)


@triton.jit(
    do_not_specialize=["tokens", "tiles", "chunks", "source_rows", "padding", "sequences", "steps", "threshold"]
)  # fmt: skip
def _embedding_bwd_kernel(
    dout_ptr, dout_stride, ids_ptr, source_ptr, source_stride, source_rows, position_ids_ptr, position_ptr,
    position_rows, segment_ids_ptr, segment_ptr, segment_rows, gain_ptr, mean_ptr, rstd_ptr, dz_ptr, partial_ptr,
    source_key_ptr, position_key_ptr, segment_key_ptr, padding, tokens, tiles, features, chunks, seed_ptr,
    examples_ptr, starts_ptr, sequences, steps, threshold, scale, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A run of `tiles` tiles of tokens: the gradient of their sum of rows, their keys for the sort, and the sums of
    dout · normal (gain) and dout (shift) into partial [2, chunks, features].
    """
    ROWS: tl.constexpr = (TILE + COLUMNS - 1) // COLUMNS
    chunk = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)[None, :]
    gain = load_row(gain_ptr, columns, features)
    dgain = tl.zeros([ROWS, COLUMNS], tl.float32)
    dshift = tl.zeros([ROWS, COLUMNS], tl.float32)
    dead = source_rows + position_rows + segment_rows
    for tile in range(chunk * tiles, (chunk + 1) * tiles):
        token = tile * ROWS + tl.arange(0, ROWS)[:, None]
        live = token < tokens
        inside = live & (columns < features)
        _store_key(source_key_ptr, ids_ptr, token, live, source_rows, 0, padding, dead)
        _store_key(
            position_key_ptr, position_ids_ptr, token, live, position_rows, source_rows, -1, dead
        )
        segments = source_rows + position_rows
        _store_key(segment_key_ptr, segment_ids_ptr, token, live, segment_rows, segments, -1, dead)
        row = dout_ptr + token.to(tl.int64) * dout_stride
        dout = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
        dout = drop(
            dout, token, seed_ptr, examples_ptr, starts_ptr, sequences, steps, threshold, scale, COLUMNS
        )  # fmt: skip
        z = _sum_of_rows(
            ids_ptr, source_ptr, source_stride, source_rows, position_ids_ptr, position_ptr, position_rows,
            segment_ids_ptr, segment_ptr, segment_rows, token, live, columns, features,
        )  # fmt: skip
        mean = tl.load(mean_ptr + token, mask=live, other=0.0)
        rstd = tl.load(rstd_ptr + token, mask=live, other=0.0)
        normal = tl.where(inside, (z - mean) * rstd, 0.0)
        dz = normalize_gradient(dout, normal, rstd, gain, inside, features)
        offsets = token.to(tl.int64) * features + columns
        tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=inside)
        dgain += dout * normal
        dshift += dout
    store_sums(partial_ptr, dgain, 0, chunk, chunks, columns, features)
    store_sums(partial_ptr, dshift, 1, chunk, chunks, columns, features)


@triton.jit
def _store_row(
    value, key, word_ptr, position_ptr, segment_ptr, word_rows, position_rows, columns, features
):
    """A finished gradient into its row of its table; `key` counts the rows of all tables."""
    inside = columns < features
    at = key.to(tl.int64) * features + columns
    positions, segments = word_rows.to(tl.int64), (word_rows + position_rows).to(tl.int64)
    if key < word_rows:
        if word_ptr is not None:
            tl.store(word_ptr + at, value.to(word_ptr.dtype.element_ty), mask=inside)
    elif key < word_rows + position_rows:
        if position_ptr is not None:
            at -= positions * features
            tl.store(position_ptr + at, value.to(position_ptr.dtype.element_ty), mask=inside)
    elif segment_ptr is not None:
        at -= segments * features
        tl.store(segment_ptr + at, value.to(segment_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "entries", "each", "word_rows", "position_rows", "dead"])
def _embedding_runs_kernel(
    keys_ptr, order_ptr, dz_ptr, head_ptr, tail_ptr, word_ptr, position_ptr, segment_ptr, word_rows, position_rows,
    dead, tokens, features, entries, each, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A chunk of `each` sorted entries: the sum of dz over each run of equal keys.

    Runs inside the chunk go to their table. The sum of a run that began before goes to head [chunks, features], of one
    that begins here and goes on to tail [chunks, features].
    """
    chunk = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < features
    first = chunk * each
    end = tl.minimum(first + each, entries)
    key = tl.load(keys_ptr + first)
    begun = (first > 0) & (tl.load(keys_ptr + tl.maximum(first - 1, 0)) == key)
    total = tl.zeros([BLOCK_N], tl.float32)
    for entry in range(first, end):
        token = tl.load(order_ptr + entry) % tokens
        total += tl.load(dz_ptr + token * features + columns, mask=inside, other=0.0).to(tl.float32)
        following = tl.load(keys_ptr + tl.minimum(entry + 1, entries - 1))
        goes_on = (entry + 1 < entries) & (following == key)
        if (goes_on == 0) | (entry + 1 == end):
            if key < dead:
                place = chunk.to(tl.int64) * features + columns
                if begun:
                    tl.store(head_ptr + place, total, mask=inside)
                elif goes_on:
                    tl.store(tail_ptr + place, total, mask=inside)
                else:
                    _store_row(
                        total, key, word_ptr, position_ptr, segment_ptr, word_rows, position_rows, columns, features
                    )  # fmt: skip
            total = tl.zeros([BLOCK_N], tl.float32)
            begun = begun & goes_on
            key = following


@triton.jit
def _end_of_run(keys_ptr, key, low, entries, steps):
    """The first entry from `low` on with a larger key, by halving."""
    high = entries
    for _ in range(steps):
        middle = (low + high) // 2
        not_after = tl.load(keys_ptr + tl.minimum(middle, entries - 1)) <= key
        open_ = low < high
        low, high = (
            tl.where(open_ & not_after, middle + 1, low),
            tl.where(open_ & ~not_after, middle, high),
        )
    return low


@triton.jit(do_not_specialize=["entries", "each", "steps", "word_rows", "position_rows", "dead"])
def _embedding_long_runs_kernel(
    keys_ptr, head_ptr, tail_ptr, word_ptr, position_ptr, segment_ptr, word_rows, position_rows, dead, features,
    entries, each, steps, BLOCK_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The run that begins in this chunk and goes on, if there is one: its tail, then the heads of the chunks after."""
    chunk = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = chunk * each
    end = tl.minimum(first + each, entries)
    key = tl.load(keys_ptr + end - 1)
    goes_on = (end < entries) & (tl.load(keys_ptr + tl.minimum(end, entries - 1)) == key)
    begun = (first > 0) & (tl.load(keys_ptr + tl.maximum(first - 1, 0)) == key)
    if goes_on & (key < dead) & (begun == 0):
        last = (_end_of_run(keys_ptr, key, end, entries, steps) - 1) // each
        total = tl.zeros([BLOCK_CHUNKS, BLOCK_N], tl.float32)
        for start in range(chunk + 1, last + 1, BLOCK_CHUNKS):
            among = start + tl.arange(0, BLOCK_CHUNKS)[:, None]
            inside = (among <= last) & (columns < features)[None, :]
            offsets = among.to(tl.int64) * features + columns[None, :]
            total += tl.load(head_ptr + offsets, mask=inside, other=0.0)
        tail = tl.load(
            tail_ptr + chunk.to(tl.int64) * features + columns, mask=columns < features, other=0.0
        )
        total_row = tail + tl.sum(total, 0)
        _store_row(
            total_row, key, word_ptr, position_ptr, segment_ptr, word_rows, position_rows, columns, features
        )  # fmt: skip


def supports(call) -> str | None:
    return _triton.refuses(call.lead) or refuses(call.position.shape[1])


def forward(
    input_ids: Tensor | None, word: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor, position: Tensor,
    token_type_ids: Tensor, segment: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, padding_idx: int, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.embedding`; only the first result unless `save`. An index outside its table gives a NaN row."""
    tokens, features = position_ids.shape[0], position.shape[1]
    out = position.new_empty(tokens, features)
    mean = position.new_empty(tokens, dtype=torch.float32) if save else None
    rstd = None if mean is None else torch.empty_like(mean)
    config, columns, rows = pick(_FORWARD, features)
    if out.numel():
        _embedding_fwd_kernel[(cdiv(tokens, rows),)](
            *_sources(input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment),
            ln_weight.contiguous(), ln_bias.contiguous(), out, mean, rstd, tokens, features, eps,
            *dropout_of(p, seed, cu_seqlens, example_ids), COLUMNS=columns, **config.options(),
        )  # fmt: skip
    return out, mean, rstd


def backward(
    dout: Tensor, input_ids: Tensor | None, word: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor,
    position: Tensor, token_type_ids: Tensor, segment: Tensor, ln_weight: Tensor, mean: Tensor, rstd: Tensor, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, padding_idx: int, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.embedding`: gradients of the three tables (or of inputs_embeds), ln_weight, ln_bias."""
    tables = (word, position, segment)
    wanted = (needs[0] and word is not None, needs[2], needs[3])
    grads = [
        torch.zeros(table.shape, dtype=dout.dtype, device=dout.device) if want else None
        for table, want in zip(tables, wanted, strict=True)
    ]
    tokens, features = dout.shape
    dz = torch.empty_like(dout, memory_format=torch.contiguous_format)
    if dout.numel() == 0:
        dgain, dshift = torch.zeros_like(ln_weight), torch.zeros_like(ln_weight)
        return grads[0], dz, grads[1], grads[2], dgain, dshift
    keys = torch.empty(sum(wanted), tokens, dtype=torch.int32, device=dout.device)
    rows_of_keys = iter(keys)
    config, columns, rows = pick(_BACKWARD, features)
    chunks, tiles = runs(tokens, rows)
    partial = dout.new_empty(2, chunks, features, dtype=torch.float32)
    dout = with_dense_rows(dout)
    _embedding_bwd_kernel[(chunks,)](
        dout, dout.stride(0),
        *_sources(input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment),
        ln_weight.contiguous(), mean, rstd, dz, partial, *(next(rows_of_keys) if want else None for want in wanted),
        padding_idx, tokens, tiles, features, chunks, *dropout_of(p, seed, cu_seqlens, example_ids),
        COLUMNS=columns, **registers(_REGISTERS), **config.options(),
    )  # fmt: skip
    if any(wanted):
        word_rows = (inputs_embeds if word is None else word).shape[0]
        _add_runs(keys, dz, grads, word_rows, position.shape[0], segment.shape[0])
    dinputs = dz if inputs_embeds is not None else None
    return grads[0], dinputs, grads[1], grads[2], *column_sums(partial, 2 * [ln_weight.dtype])


def _sources(input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment):
    """The gathered tables as the kernels take them."""
    source = with_dense_rows(word if inputs_embeds is None else inputs_embeds)
    ids = None if inputs_embeds is not None else input_ids.contiguous()
    return (
        ids, source, source.stride(0), source.shape[0], position_ids.contiguous(), position.contiguous(),
        position.shape[0], token_type_ids.contiguous(), segment.contiguous(), segment.shape[0],
    )  # fmt: skip


def _add_runs(keys, dz, grads, word_rows, position_rows, segment_rows):
    """The rows of dz [T,N] summed by key into the tables; keys [tables,T] int32 count the rows of all tables."""
    tokens, features = dz.shape
    entries = keys.numel()
    ordered, order = torch.sort(keys.flatten(), stable=True)
    each = max(_CHUNK, cdiv(entries, _CHUNKS))
    chunks = cdiv(entries, each)
    head = dz.new_empty(chunks, features, dtype=torch.float32)
    tail = torch.empty_like(head)
    rows = word_rows, position_rows, word_rows + position_rows + segment_rows
    config = _RUNS.pick("all")
    _embedding_runs_kernel[(chunks, cdiv(features, config.blocks["BLOCK_N"]))](
        ordered, order, dz, head, tail, *grads, *rows, tokens, features, entries, each, **config.options()
    )  # fmt: skip
    config = _LONG_RUNS.pick("all")
    _embedding_long_runs_kernel[(chunks, cdiv(features, config.blocks["BLOCK_N"]))](
        ordered, head, tail, *grads, *rows, features, entries, each, entries.bit_length(), **config.options()
    )  # fmt: skip
