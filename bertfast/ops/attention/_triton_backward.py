"""Triton kernels of attention's backward. They use the work list of the forward, and no atomics.

Probabilities P are computed again from lse. With M the dropout's factors and D = rowsum(dout out),
    dv = (P M)^T dout,  dS = P (M (dout v^T) - D),  dq = scale dS k,  dk = scale dS^T q.
Two launches: a program owns a block of queries (dq, and D for the next launch), then one owns a block of keys (dk, dv).
One launch where a block of keys holds a whole sequence: its program goes over all queries anyway and gives dq too.
P M and dS are cast to the dtype before their products; rows that belong to no sequence get 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._dot_triton import dot
from .._philox_triton import counter_row, keep_mask
from ._triton_forward import LOG2_E, find_block, load_tile, store_tile


@triton.jit
def _delta(dout, out):
    """rowsum(dout out), fp32 [M]."""
    # A sum over lanes must not take the product into its first step: each lane of a row would round another one.
    return tl.sum(tl.fma(dout.to(tl.float32), out.to(tl.float32), 0.0), 1)


@triton.jit(do_not_specialize=["tokens", "sequences", "threshold"])
def _attention_bwd_queries_kernel(
    q_ptr, k_ptr, v_ptr, cu_seqlens_ptr, dout_ptr, out_ptr, lse_ptr, seed_ptr, examples_ptr, delta_ptr, dqkv_ptr,
    tokens, sequences, stride_token, stride_head, stride_dout, scale, threshold, keep_scale,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq into dqkv, and delta."""
    sequence, start, length, first = find_block(cu_seqlens_ptr, sequences, tokens, BLOCK_M)
    if first >= length:
        return
    head, heads = tl.program_id(1), tl.num_programs(1)
    row, rows = start + first, length - first
    dqkv_ptr += head * SIZE
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if sequence == sequences:
        store_tile(dqkv_ptr, row, 3 * heads * SIZE, dq, rows, BLOCK_M, SIZE, BLOCK_D)
        return

    query = first + tl.arange(0, BLOCK_M)
    counter = counter_row(examples_ptr, sequence, sequences)
    statistics = head.to(tl.int64) * tokens + start + query
    lse = tl.load(lse_ptr + statistics, mask=query < length, other=0.0) * LOG2_E
    dout_ptr += head * SIZE
    dout = load_tile(dout_ptr, row, stride_dout, rows, BLOCK_M, SIZE, BLOCK_D)
    out_ptr += head * SIZE
    out = load_tile(out_ptr, row, heads * SIZE, rows, BLOCK_M, SIZE, BLOCK_D)
    delta = _delta(dout, out)
    tl.store(delta_ptr + statistics, delta, mask=query < length)
    offset = head.to(tl.int64) * stride_head
    q = load_tile(q_ptr + offset, row, stride_token, rows, BLOCK_M, SIZE, BLOCK_D)
    for key in range(0, length, BLOCK_N):
        left = length - key
        k = load_tile(k_ptr + offset, start + key, stride_token, left, BLOCK_N, SIZE, BLOCK_D)
        v = load_tile(v_ptr + offset, start + key, stride_token, left, BLOCK_N, SIZE, BLOCK_D)
        logits = dot(q, tl.trans(k), None, PRECISION)
        probability = tl.exp2(logits * (scale * LOG2_E) - lse[:, None])
        # exp(-lse) of a key that is not there may be inf, and inf * 0 would be NaN
        probability = tl.where(tl.arange(0, BLOCK_N)[None, :] < left, probability, 0.0)
        slope = dot(dout, tl.trans(v), None, PRECISION)
        if seed_ptr is not None:
            keep = keep_mask(
                tl.load(seed_ptr), key, query[:, None], head, counter, threshold, BLOCK_N
            )
            slope = tl.where(keep, slope, 0.0) * keep_scale
        slope = probability * (slope - delta[:, None])
        dq = dot(slope.to(k.dtype), k, dq, PRECISION)
    store_tile(dqkv_ptr, row, 3 * heads * SIZE, dq * scale, rows, BLOCK_M, SIZE, BLOCK_D)


@triton.jit(do_not_specialize=["tokens", "sequences", "threshold"])
def _attention_bwd_keys_kernel(
    q_ptr, k_ptr, v_ptr, cu_seqlens_ptr, dout_ptr, out_ptr, lse_ptr, seed_ptr, examples_ptr, delta_ptr, dqkv_ptr,
    tokens, sequences, stride_token, stride_head, stride_dout, scale, threshold, keep_scale,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv into dqkv; where delta is None, as a block of keys is a whole sequence, dq too, from out."""
    sequence, start, length, first = find_block(cu_seqlens_ptr, sequences, tokens, BLOCK_N)
    if first >= length:
        return
    head, heads = tl.program_id(1), tl.num_programs(1)
    row, rows = start + first, length - first
    width = heads * SIZE
    dqkv_ptr += head * SIZE
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if sequence == sequences:
        if delta_ptr is None:
            store_tile(dqkv_ptr, row, 3 * width, dk, rows, BLOCK_N, SIZE, BLOCK_D)
        store_tile(dqkv_ptr + width, row, 3 * width, dk, rows, BLOCK_N, SIZE, BLOCK_D)
        store_tile(dqkv_ptr + 2 * width, row, 3 * width, dv, rows, BLOCK_N, SIZE, BLOCK_D)
        return

    offset = head.to(tl.int64) * stride_head
    k = load_tile(k_ptr + offset, row, stride_token, rows, BLOCK_N, SIZE, BLOCK_D)
    v = load_tile(v_ptr + offset, row, stride_token, rows, BLOCK_N, SIZE, BLOCK_D)
    counter = counter_row(examples_ptr, sequence, sequences)
    for at in range(0, length, BLOCK_M):
        left = length - at
        exists = tl.arange(0, BLOCK_M) < left
        q = load_tile(q_ptr + offset, start + at, stride_token, left, BLOCK_M, SIZE, BLOCK_D)
        dout = load_tile(
            dout_ptr + head * SIZE, start + at, stride_dout, left, BLOCK_M, SIZE, BLOCK_D
        )
        query = at + tl.arange(0, BLOCK_M)
        statistics = head.to(tl.int64) * tokens + start + query
        lse = tl.load(lse_ptr + statistics, mask=exists, other=0.0) * LOG2_E
        if delta_ptr is None:
            out = load_tile(out_ptr + head * SIZE, start + at, width, left, BLOCK_M, SIZE, BLOCK_D)
            delta = _delta(dout, out)
        else:
            delta = tl.load(delta_ptr + statistics, mask=exists, other=0.0)
        # transposed, [keys, queries]: the left operands of dv and dk as they stand
        logits = dot(k, tl.trans(q), None, PRECISION)
        probability = tl.exp2(logits * (scale * LOG2_E) - lse[None, :])
        valid = (tl.arange(0, BLOCK_N) < rows)[:, None] & exists[None, :]
        probability = tl.where(valid, probability, 0.0)
        slope = dot(v, tl.trans(dout), None, PRECISION)
        kept = probability
        if seed_ptr is not None:
            keep = tl.trans(
                keep_mask(
                    tl.load(seed_ptr), first, query[:, None], head, counter, threshold, BLOCK_N
                )
            )
            kept = tl.where(keep, probability, 0.0)
            slope = tl.where(keep, slope, 0.0) * keep_scale
        slope = (probability * (slope - delta[None, :])).to(k.dtype)
        dv = dot(kept.to(k.dtype), dout, dv, PRECISION)
        dk = dot(slope, q, dk, PRECISION)
        if delta_ptr is None:
            # transposed too: Triton spreads the warps of all these products over the rows of this one
            dq = dot(tl.trans(k), slope, None, PRECISION) * scale
            store_tile(dqkv_ptr, start + at, 3 * width, tl.trans(dq), left, BLOCK_M, SIZE, BLOCK_D)
    store_tile(dqkv_ptr + width, row, 3 * width, dk * scale, rows, BLOCK_N, SIZE, BLOCK_D)
    store_tile(dqkv_ptr + 2 * width, row, 3 * width, dv * keep_scale, rows, BLOCK_N, SIZE, BLOCK_D)
