"""Triton kernel of attention's forward, and the work list that its backward shares.

Flash style (Milakov and Gimelshein 2018; Dao et al. 2022): a program owns a block of query rows of one sequence and
head, and passes over the sequence's keys with a running maximum and sum, so no [S,S] matrix exists. Logits and sums are
fp32; probabilities are cast to the dtype before they meet the values. A row's result depends on its own sequence alone.

Work list. The blocks of sequence b take program ids cu_seqlens[b] // BLOCK + b onwards: disjoint, as
ceil(length / BLOCK) <= end // BLOCK - start // BLOCK + 1. The tokens behind the last sequence (a pack with spare
capacity) count as one more, whose results are 0. Programs left over between two sequences return at once.

Arguments, of the backward too: q, k and v [T,heads,SIZE] with the strides of their tokens and heads; cu_seqlens int32
[sequences + 1]; out and dout [T,heads * SIZE]; lse and delta, D of the backward, fp32 [heads,T]; seed int64 [1], or
None: no dropout; examples int64 [sequences] or None; dqkv [T,3,heads,SIZE]. BLOCK_M queries, BLOCK_N keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._dot_triton import dot
from .._philox_triton import counter_row, keep_mask

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def find_block(cu_seqlens_ptr, sequences, tokens, BLOCK: tl.constexpr):
    """Which rows this program owns: (sequence, its first token, its length, first row inside it).

    The sequence is `sequences` for tokens that belong to none. A row that is not below the length: nothing to do.
    """
    block, lane = tl.program_id(0), tl.arange(0, 32)
    low = block * 0
    count = low + sequences + 1
    while count > 1:  # 32 at a time, by one read
        step = (count + 31) // 32
        at = low + lane * step
        first = tl.load(cu_seqlens_ptr + at, mask=lane * step < count, other=2147483647) // BLOCK
        last = tl.sum((first + at <= block).to(tl.int32), 0) - 1
        low += last * step
        count = tl.minimum(step, count - last * step)
    start = tl.load(cu_seqlens_ptr + low)
    stop = tl.load(cu_seqlens_ptr + low + 1, mask=low < sequences, other=tokens)
    return low, start, stop - start, (block - start // BLOCK - low) * BLOCK


@triton.jit
def tile_mask(count, ROWS: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which elements of a tile [ROWS, BLOCK_D] exist: the first `count` rows (None: all), the first SIZE columns."""
    columns = tl.arange(0, BLOCK_D)[None, :] < SIZE
    if count is None:
        mask = columns
    else:
        mask = tl.arange(0, ROWS)[:, None] < count
        if SIZE != BLOCK_D:
            mask = mask & columns
    return mask


@triton.jit
def tile_offsets(stride, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    return tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_tile(
    ptr, row, stride, count, ROWS: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows from `row` on as a tile [ROWS, BLOCK_D]; 0 behind the first `count` rows (None: all) and SIZE columns."""
    ptrs = ptr + row.to(tl.int64) * stride + tile_offsets(stride, ROWS, BLOCK_D)
    if count is None and SIZE == BLOCK_D:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=tile_mask(count, ROWS, SIZE, BLOCK_D), other=0.0)


@triton.jit
def store_tile(
    ptr, row, stride, tile, count, ROWS: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The counterpart of `load_tile`; casts the tile to the dtype of the pointer."""
    ptrs = ptr + row.to(tl.int64) * stride + tile_offsets(stride, ROWS, BLOCK_D)
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=tile_mask(count, ROWS, SIZE, BLOCK_D))


@triton.jit
def _visit(
    q, k_ptr, v_ptr, row, stride_token, left, scale_log2, largest, total, out, seed, key, query, head, counter,
    threshold, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(largest, total, out) after a tile of keys, which begins at row `row`, key `key` of its sequence.

    left: keys of the tile that exist; None: all. largest: of the scaled products so far.
    """
    k = load_tile(k_ptr, row, stride_token, left, BLOCK_N, SIZE, BLOCK_D)
    product = dot(q, tl.trans(k), None, PRECISION)
    if left is not None:
        exists = tl.arange(0, BLOCK_N)[None, :] < left
        product = tl.where(exists, product, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(product, 1) * scale_log2)
    # A row of nothing but -inf so far (the product overflowed) has to stay 0, not inf - inf.
    shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    probability = tl.exp2(product * scale_log2 - shift[:, None])
    rescale = tl.exp2(largest - shift)
    if left is not None:  # once more, as -inf times a scale of 0 is NaN
        probability = tl.where(exists, probability, 0.0)
    total = total * rescale + tl.sum(probability, 1)
    if seed is not None:
        keep = keep_mask(seed, key, query[:, None], head, counter, threshold, BLOCK_N)
        probability = tl.where(keep, probability, 0.0)
    v = load_tile(v_ptr, row, stride_token, left, BLOCK_N, SIZE, BLOCK_D)
    return new_largest, total, dot(probability.to(v.dtype), v, out * rescale[:, None], PRECISION)


@triton.jit(do_not_specialize=["tokens", "sequences", "threshold"])
def _attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, cu_seqlens_ptr, out_ptr, lse_ptr, seed_ptr, examples_ptr, tokens, sequences, stride_token,
    stride_head, scale_log2, threshold, keep_scale,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out, and lse where it is not None; scale_log2 = scale / ln 2, as exponentials are of base 2."""
    sequence, start, length, first = find_block(cu_seqlens_ptr, sequences, tokens, BLOCK_M)
    # as unsigned: it is below 0 before the spare rows, in a launch for these alone
    if first.to(tl.uint32) >= length.to(tl.uint32):
        return
    head, heads = tl.program_id(1), tl.num_programs(1)
    row, rows = start + first, length - first
    out_ptr += head * SIZE
    lse_ptrs = lse_ptr
    if lse_ptr is not None:
        lse_ptrs = lse_ptr + head.to(tl.int64) * tokens + row + tl.arange(0, BLOCK_M)
    exists = tl.arange(0, BLOCK_M) < rows
    if sequence == sequences:
        zeros = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        store_tile(out_ptr, row, heads * SIZE, zeros, rows, BLOCK_M, SIZE, BLOCK_D)
        if lse_ptr is not None:
            tl.store(lse_ptrs, tl.zeros([BLOCK_M], tl.float32), mask=exists)
        return

    offset = head.to(tl.int64) * stride_head
    q = load_tile(q_ptr + offset, row, stride_token, rows, BLOCK_M, SIZE, BLOCK_D)
    # The largest product makes the largest logit where the scale is positive: its sign goes to the queries.
    q = tl.where(scale_log2 < 0, -q, q)
    scale_log2 = tl.abs(scale_log2)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    query = first + tl.arange(0, BLOCK_M)
    counter = counter_row(examples_ptr, sequence, sequences)
    seed = seed_ptr
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    whole = length // BLOCK_N * BLOCK_N
    k_ptr += offset
    v_ptr += offset
    if PRECISION == "ieee" and q_ptr.dtype.element_ty == tl.float32:
        # strict fp32 has no registers for two bodies
        for key in range(0, length, BLOCK_N):
            largest, total, out = _visit(
                q, k_ptr, v_ptr, start + key, stride_token, length - key, scale_log2, largest, total, out, seed, key,
                query, head, counter, threshold, SIZE, BLOCK_D, PRECISION, BLOCK_N,
            )  # fmt: skip
    else:
        for key in range(0, whole, BLOCK_N):
            largest, total, out = _visit(
                q, k_ptr, v_ptr, start + key, stride_token, None, scale_log2, largest, total, out, seed, key,
                query, head, counter, threshold, SIZE, BLOCK_D, PRECISION, BLOCK_N,
            )  # fmt: skip
        if whole < length:
            largest, total, out = _visit(
                q, k_ptr, v_ptr, start + whole, stride_token, length - whole, scale_log2, largest, total, out, seed,
                whole, query, head, counter, threshold, SIZE, BLOCK_D, PRECISION, BLOCK_N,
            )  # fmt: skip
    out = out * (keep_scale / total)[:, None]
    store_tile(out_ptr, row, heads * SIZE, out, rows, BLOCK_M, SIZE, BLOCK_D)
    if lse_ptr is not None:
        tl.store(lse_ptrs, (largest + tl.log2(total)) * LN_2, mask=exists)
