"""Triton kernels of the backward, for one stretch of the vocabulary after another: the gradient of its logits goes to a
scratch, from which one launch takes dx, dweight and dbias. No atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._dot_triton import dot
from .._gemm_triton import add_product, end_run
from ._triton_forward import SLOTS, items_of, logits_tile


@triton.jit
def _cross_entropy_gather_kernel(
    x_ptr, x_stride, rows_ptr, count_ptr, listed_ptr, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """listed [tokens, k]: the labelled rows of x, one after the other."""
    slot = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = slot < tl.load(count_ptr)
    row = tl.load(rows_ptr + slot, mask=live, other=0).to(tl.int64)
    inside = live[:, None] & (columns < k)[None, :]
    values = tl.load(x_ptr + row[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    tl.store(listed_ptr + slot.to(tl.int64)[:, None] * k + columns[None, :], values, mask=inside)


@triton.jit(do_not_specialize=["start", "row_blocks"])
def _cross_entropy_dlogits_kernel(
    listed_ptr, weight_ptr, weight_stride, bias_ptr, labels_ptr, rows_ptr, count_ptr, lse_ptr, dlogits_ptr, start,
    vocab_size, k, width, row_blocks,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dlogits [tokens, width] of the entries from `start` on: exp(logit - lse) - 1[entry is the label], not yet scaled.

    NaN in a row whose label is outside the vocabulary; 0 for entries beyond it, up to a multiple of `_WIDTH`.
    """
    first = (tl.program_id(0) % row_blocks) * BLOCK_M
    count = tl.load(count_ptr)
    if first < count:
        slot = first + tl.arange(0, BLOCK_M)
        live = slot < count
        row = tl.load(rows_ptr + slot, mask=live, other=0).to(tl.int64)
        label = tl.load(labels_ptr + row, mask=live, other=0)
        lse = tl.load(lse_ptr + row, mask=live, other=0.0)
        place = (tl.program_id(0) // row_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = start + place
        logits = logits_tile(
            listed_ptr, slot.to(tl.int64), live, k, weight_ptr, weight_stride, bias_ptr, columns, vocab_size, k,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        hit = tl.where(columns[None, :] == label[:, None], 1.0, 0.0)
        dlogits = tl.exp(logits - lse[:, None]) - hit
        valid = (label >= 0) & (label < vocab_size)
        dlogits = tl.where(valid[:, None], dlogits, float("nan"))
        at = dlogits_ptr + slot.to(tl.int64)[:, None] * width + place[None, :]
        tl.store(at, dlogits.to(dlogits_ptr.dtype.element_ty), mask=live[:, None])


@triton.jit
def _dweight_tile(
    block, dlogits_ptr, listed_ptr, dweight_ptr, scale, count, entries, k, width,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dweight [entries, k] = scale · dlogitsᵀ · listed rows of x."""
    tiles = tl.cdiv(entries, BLOCK_M)
    entry = (block % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (block // tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot = tl.arange(0, BLOCK_K).to(tl.int64)
    total = add_product(
        tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
        dlogits_ptr + slot[None, :] * width + entry[:, None], None, (entry < width)[:, None], width, 1,
        listed_ptr + slot[:, None] * k + columns[None, :], (columns < k)[None, :], k,
        count, BLOCK_K, PRECISION,
    )  # fmt: skip
    at = dweight_ptr + entry.to(tl.int64)[:, None] * k + columns[None, :]
    inside = (entry < entries)[:, None] & (columns < k)[None, :]
    tl.store(at, (total * scale).to(dweight_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dbias_entries(
    block, dlogits_ptr, dbias_ptr, scale, count, entries, width, BLOCK_N: tl.constexpr
):
    """`BLOCK_N` of dbias [entries] = scale · Σ dlogits over the listed rows."""
    entry = block * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([SLOTS, BLOCK_N], tl.float32)
    for start in range(0, count, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        at = dlogits_ptr + slot.to(tl.int64)[:, None] * width + entry[None, :]
        inside = (slot < count)[:, None] & (entry < width)[None, :]
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    result = (tl.sum(total, 0) * scale).to(dbias_ptr.dtype.element_ty)
    tl.store(dbias_ptr + entry, result, mask=entry < entries)


@triton.jit
def _dx_tile(
    block, dlogits_ptr, weight_ptr, weight_stride, rows_ptr, sum_ptr, dx_ptr, scale, count, start, entries, is_last,
    k, width, row_blocks,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of Σ dlogits · weight over the entries so far: kept in sum [tokens, k] fp32, after the last in dx."""
    first = (block % row_blocks) * BLOCK_M
    if first < count:
        slot = first + tl.arange(0, BLOCK_M)
        columns = (block // row_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        live, entry = slot < count, tl.arange(0, BLOCK_K)
        inside = live[:, None] & (columns < k)[None, :]
        at = slot.to(tl.int64)[:, None] * k + columns[None, :]
        summed = slot < tl.where(start > 0, count, 0)
        total = tl.load(sum_ptr + at, mask=inside & summed[:, None], other=0.0)
        dlogits = dlogits_ptr + slot.to(tl.int64)[:, None] * width + entry[None, :]
        weight = weight_ptr + entry.to(tl.int64)[:, None] * weight_stride + columns[None, :]
        EXACT: tl.constexpr = PRECISION == "ieee" and dlogits_ptr.dtype.element_ty == tl.float32
        if EXACT:
            run = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first_entry in range(0, entries, BLOCK_K):  # dlogits goes on as zeros, weight ends
            there = (entry < entries - first_entry)[:, None] & (columns < k)[None, :]
            a = tl.load(dlogits + first_entry, mask=live[:, None], other=0.0)
            b = tl.load(weight, mask=there, other=0.0)
            if EXACT:
                run = dot(a, b, run, PRECISION)
                total, run = end_run(total, run, first_entry // BLOCK_K)
            else:
                total = dot(a, b, total, PRECISION)
            weight += tl.cast(weight_stride, tl.int64) * BLOCK_K
        if EXACT:
            total += run
        if is_last:
            row = tl.load(rows_ptr + slot, mask=live, other=0).to(tl.int64)
            at = row[:, None] * k + columns[None, :]
            tl.store(dx_ptr + at, (total * scale).to(dx_ptr.dtype.element_ty), mask=inside)
        else:
            tl.store(sum_ptr + at, total, mask=inside)


@triton.jit(
    do_not_specialize=["num_items", "start", "entries", "is_last", "row_blocks", "dw_blocks", "db_blocks"]
)  # fmt: skip
def _cross_entropy_gradients_kernel(
    dlogits_ptr, listed_ptr, weight_ptr, weight_stride, rows_ptr, count_ptr, dloss_ptr, num_items, sum_ptr, dx_ptr,
    dweight_ptr, dbias_ptr, start, entries, is_last, k, width, row_blocks, dw_blocks, db_blocks,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the entries from `start` on give: blocks of three roles, a tile of dweight, some of dbias, a tile of dx."""
    block = tl.program_id(0)
    count = tl.load(count_ptr)
    scale = tl.where(count > 0, tl.load(dloss_ptr) / items_of(count_ptr, num_items), 0.0)
    if block < dw_blocks:
        if dweight_ptr is not None:
            dweight = dweight_ptr + start.to(tl.int64) * k
            _dweight_tile(
                block, dlogits_ptr, listed_ptr, dweight, scale, count, entries, k, width,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif block < dw_blocks + db_blocks:
        if dbias_ptr is not None:
            _dbias_entries(
                block - dw_blocks, dlogits_ptr, dbias_ptr + start, scale, count, entries, width, BLOCK_N
            )  # fmt: skip
    elif dx_ptr is not None:
        weight = weight_ptr + start.to(tl.int64) * weight_stride
        _dx_tile(
            block - dw_blocks - db_blocks, dlogits_ptr, weight, weight_stride, rows_ptr, sum_ptr, dx_ptr, scale, count,
            start, entries, is_last, k, width, row_blocks, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
