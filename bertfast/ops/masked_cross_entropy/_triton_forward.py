"""Triton kernels of the forward: the list of labelled rows, a span's log-sum-exp, the spans' sum, the loss.

A block walks a span of the vocabulary for its rows with an online log-sum-exp; the spans are combined in their order.
How many rows have a label is known on the device alone: grids are sized for all, blocks beyond the list exit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._gemm_triton import add_product

_ROWS = tl.constexpr(2048)  # labels that the listing reads at once
SLOTS = tl.constexpr(32)  # listed rows of a block that combines spans, or adds up dbias
_SPANS = tl.constexpr(32)  # spans that it reads at once


@triton.jit(do_not_specialize=["ignore_index"])
def _cross_entropy_list_kernel(labels_ptr, rows_ptr, count_ptr, lse_ptr, tokens, ignore_index):
    """rows [tokens] int32: those with a label in their order, count [1] of them; lse is 0 for the others."""
    count = tl.zeros([], tl.int32)
    for start in range(0, tokens, _ROWS):
        row = start + tl.arange(0, _ROWS)
        inside = row < tokens
        labelled = inside & (tl.load(labels_ptr + row, mask=inside, other=0) != ignore_index)
        place = count + tl.cumsum(labelled.to(tl.int32), 0) - 1
        tl.store(rows_ptr + place, row, mask=labelled)
        if lse_ptr is not None:
            tl.store(lse_ptr + row, tl.zeros([_ROWS], tl.float32), mask=inside & ~labelled)
        count += tl.sum(labelled.to(tl.int32), 0)
    tl.store(count_ptr, count)


@triton.jit
def logits_tile(
    x_ptr, row, live, x_stride, weight_ptr, weight_stride, bias_ptr, columns, vocab_size, k,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x[row] · weight[columns]ᵀ + bias[columns], fp32 [BLOCK_M, BLOCK_N]; -inf beyond the vocabulary."""
    depth = tl.arange(0, BLOCK_K)
    inside = columns < vocab_size
    logits = add_product(
        tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
        x_ptr + row[:, None] * x_stride + depth[None, :], None, live[:, None], 1, 1,
        weight_ptr + columns.to(tl.int64)[None, :] * weight_stride + depth[:, None], inside[None, :], 1,
        k, BLOCK_K, PRECISION,
    )  # fmt: skip
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    return tl.where(inside[None, :], logits, float("-inf"))


@triton.jit
def _finite(high):
    """The largest logit as what exponents are relative to; 0 where all are -inf."""
    return tl.where(high == float("-inf"), 0.0, high)


@triton.jit(do_not_specialize=["tokens", "row_blocks", "spans"])
def _cross_entropy_spans_kernel(
    x_ptr, x_stride, weight_ptr, weight_stride, bias_ptr, labels_ptr, rows_ptr, count_ptr, partial_ptr, tokens,
    vocab_size, k, row_blocks, spans, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """For listed rows and a span of entries: largest logit, Σ exp(logit - largest), and the label's logit or 0, into
    partial [3, spans, tokens].
    """
    span = tl.program_id(0) // row_blocks
    first = (tl.program_id(0) % row_blocks) * BLOCK_M
    count = tl.load(count_ptr)
    if first < count:
        slot = first + tl.arange(0, BLOCK_M)
        live = slot < count
        row = tl.load(rows_ptr + slot, mask=live, other=0).to(tl.int64)
        label = tl.load(labels_ptr + row, mask=live, other=-1)
        high = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        target = tl.zeros([BLOCK_M], tl.float32)
        for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, vocab_size), BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)
            logits = logits_tile(
                x_ptr, row, live, x_stride, weight_ptr, weight_stride, bias_ptr, columns, vocab_size, k,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            higher = tl.maximum(high, tl.max(logits, 1))
            base = _finite(higher)
            total = total * tl.exp(high - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
            target += tl.sum(tl.where(columns[None, :] == label[:, None], logits, 0.0), 1)
            high = higher
        place = partial_ptr + span.to(tl.int64) * tokens + slot
        size = spans.to(tl.int64) * tokens
        tl.store(place, high, mask=live)
        tl.store(place + size, total, mask=live)
        tl.store(place + 2 * size, target, mask=live)


@triton.jit(do_not_specialize=["tokens", "spans"])
def _cross_entropy_combine_kernel(
    partial_ptr, labels_ptr, rows_ptr, count_ptr, lse_ptr, sums_ptr, tokens, vocab_size, spans
):
    """lse of `SLOTS` listed rows from their spans, and the sum of their losses into sums [blocks].

    A label outside the vocabulary makes the loss NaN.
    """
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    live = slot < tl.load(count_ptr)
    row = tl.load(rows_ptr + slot, mask=live, other=0).to(tl.int64)
    label = tl.load(labels_ptr + row, mask=live, other=0)
    size = spans.to(tl.int64) * tokens
    high = tl.full([_SPANS, SLOTS], float("-inf"), tl.float32)
    total = tl.zeros([_SPANS, SLOTS], tl.float32)
    target = tl.zeros([_SPANS, SLOTS], tl.float32)
    for start in range(0, spans, _SPANS):
        span = start + tl.arange(0, _SPANS)[:, None]
        inside = (span < spans) & live[None, :]
        place = partial_ptr + span.to(tl.int64) * tokens + slot[None, :]
        part = tl.load(place, mask=inside, other=float("-inf"))
        higher = tl.maximum(high, part)
        base = _finite(higher)
        total = total * tl.exp(high - base)
        total += tl.load(place + size, mask=inside, other=0.0) * tl.exp(part - base)
        target += tl.load(place + 2 * size, mask=inside, other=0.0)
        high = higher
    highest = tl.max(high, 0)
    base = _finite(highest)
    # the choice keeps the product from being fused into the sum, whose lanes would then differ
    shares = tl.where(live[None, :], total * tl.exp(high - base[None, :]), 0.0)
    lse = base + tl.log(tl.sum(shares, 0))
    tl.store(lse_ptr + row, lse, mask=live)
    loss = tl.where((label >= 0) & (label < vocab_size), lse - tl.sum(target, 0), float("nan"))
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(live, loss, 0.0), 0))


@triton.jit
def items_of(count_ptr, num_items):
    """What the sum of losses is divided by: num_items, or the number of labelled rows where it is None."""
    if num_items is None:
        return tl.load(count_ptr).to(tl.float32)
    else:
        return num_items.to(tl.float32)


@triton.jit(do_not_specialize=["blocks", "num_items"])
def _cross_entropy_loss_kernel(sums_ptr, count_ptr, loss_ptr, blocks, num_items):
    """loss [] = Σ sums [blocks] / the number of items."""
    total = tl.zeros([_ROWS], tl.float32)
    for start in range(0, blocks, _ROWS):
        block = start + tl.arange(0, _ROWS)
        total += tl.load(sums_ptr + block, mask=block < blocks, other=0.0)
    tl.store(loss_ptr, tl.sum(total, 0) / items_of(count_ptr, num_items))
