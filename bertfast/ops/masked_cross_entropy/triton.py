"""Launcher of the Triton form: labelled rows only, the vocabulary in pieces, never a [T, vocabulary] matrix.

How many rows have a label is known on the device alone. A first kernel lists them; the grids are sized for T rows, and
blocks beyond the list exit. Forward: a block walks a span of the vocabulary for its rows with an online log-sum-exp;
the spans are combined in their order. Backward: for one stretch of the vocabulary after another, the gradient of the
logits goes to a scratch [T, `_STRETCH`], from which one launch takes dx, dweight and dbias. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton
from .._autograd import thaw
from .._gemm_triton import add_product
from .._layernorm_triton import dense_rows
from .._triton import Config, Table, cdiv, precision

_MANY = 256  # tokens from which blocks have many rows; labels stand at a part of them
_STRETCH = 4096  # words whose gradients of logits are in memory at once
_WIDTH = 128  # its rows are whole multiples of this, as this is of every block size: no tile needs a mask there
_ROWS = tl.constexpr(2048)  # labels that the listing reads at once
_SLOTS = tl.constexpr(32)  # listed rows of a block that combines spans, or adds up dbias
_SPANS = tl.constexpr(32)  # spans that it reads at once


def _table(name: str, span: dict[str, int], few_k: int) -> Table:
    """Block shapes of a kernel that holds logits; `span`: {"SPAN": words of a block} where it walks several tiles."""

    def shape(m: int, n: int, k: int, num_warps: int, num_stages: int) -> Config:
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, **span}
        return Config(blocks, num_warps, num_stages)

    entries = {
        "many": shape(128, 128, 32, 8, 4),
        "few": shape(32, 64, few_k, 4, 3),
        "tf32": shape(64, 64, 32, 4, 3),
        "fp32": shape(64, 64, 16, 8, 2),
    }
    # wgmma and tcgen05 take operands from shared memory: deeper tiles cost no registers there
    deep = entries | {"many": shape(128, 128, 64, 8, 3)}
    return Table(name, {80: entries, 90: deep, 120: entries})


_LOGITS = _table("cross_entropy_forward", {"SPAN": 256}, 128)
_BACKWARD = _table("cross_entropy_backward", {}, 64)
_SMALL = {"num_warps": 4, "num_stages": 1}  # of the kernels that hold no product
_LISTING = {"num_warps": 8, "num_stages": 1}  # of the one that lists rows


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
def _logits(
    x_ptr, row, live, x_stride, weight_ptr, weight_stride, bias_ptr, columns, vocabulary, k,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x[row] · weight[columns]ᵀ + bias[columns], fp32 [BLOCK_M, BLOCK_N]; -inf beyond the vocabulary."""
    depth = tl.arange(0, BLOCK_K)
    inside = columns < vocabulary
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
    vocabulary, k, row_blocks, spans, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """For listed rows and a span of words: the largest logit, Σ exp(logit - largest), and the label's logit or 0, into
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
        for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, vocabulary), BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)
            logits = _logits(
                x_ptr, row, live, x_stride, weight_ptr, weight_stride, bias_ptr, columns, vocabulary, k,
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
    partial_ptr, labels_ptr, rows_ptr, count_ptr, lse_ptr, sums_ptr, tokens, vocabulary, spans
):
    """lse of `_SLOTS` listed rows from their spans, and the sum of their losses into sums [blocks].

    A label outside the vocabulary makes the loss NaN.
    """
    slot = tl.program_id(0) * _SLOTS + tl.arange(0, _SLOTS)
    live = slot < tl.load(count_ptr)
    row = tl.load(rows_ptr + slot, mask=live, other=0).to(tl.int64)
    label = tl.load(labels_ptr + row, mask=live, other=0)
    size = spans.to(tl.int64) * tokens
    high = tl.full([_SPANS, _SLOTS], float("-inf"), tl.float32)
    total = tl.zeros([_SPANS, _SLOTS], tl.float32)
    target = tl.zeros([_SPANS, _SLOTS], tl.float32)
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
    loss = tl.where((label >= 0) & (label < vocabulary), lse - tl.sum(target, 0), float("nan"))
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(live, loss, 0.0), 0))


@triton.jit
def _items(count_ptr, num_items):
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
    tl.store(loss_ptr, tl.sum(total, 0) / _items(count_ptr, num_items))


@triton.jit
def _cross_entropy_gather_kernel(
    x_ptr,
    x_stride,
    rows_ptr,
    count_ptr,
    listed_ptr,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
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
    vocabulary, k, width, row_blocks,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dlogits [tokens, width] of the words from `start` on: exp(logit - lse) - 1[word is the label], not yet scaled.

    NaN in a row whose label is outside the vocabulary; 0 for words beyond it, up to a multiple of `_WIDTH`.
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
        logits = _logits(
            listed_ptr, slot.to(tl.int64), live, k, weight_ptr, weight_stride, bias_ptr, columns, vocabulary, k,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        hit = tl.where(columns[None, :] == label[:, None], 1.0, 0.0)
        dlogits = tl.exp(logits - lse[:, None]) - hit
        valid = (label >= 0) & (label < vocabulary)
        dlogits = tl.where(valid[:, None], dlogits, float("nan"))
        at = dlogits_ptr + slot.to(tl.int64)[:, None] * width + place[None, :]
        tl.store(at, dlogits.to(dlogits_ptr.dtype.element_ty), mask=live[:, None])


@triton.jit
def _dweight_tile(
    block, dlogits_ptr, listed_ptr, dweight_ptr, scale, count, words, k, width,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dweight [words, k] = scale · dlogitsᵀ · listed rows of x."""
    tiles = tl.cdiv(words, BLOCK_M)
    word = (block % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (block // tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot = tl.arange(0, BLOCK_K).to(tl.int64)
    total = add_product(
        tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
        dlogits_ptr + slot[None, :] * width + word[:, None], None, (word < width)[:, None], width, 1,
        listed_ptr + slot[:, None] * k + columns[None, :], (columns < k)[None, :], k,
        count, BLOCK_K, PRECISION,
    )  # fmt: skip
    at = dweight_ptr + word.to(tl.int64)[:, None] * k + columns[None, :]
    inside = (word < words)[:, None] & (columns < k)[None, :]
    tl.store(at, (total * scale).to(dweight_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dbias_words(block, dlogits_ptr, dbias_ptr, scale, count, words, width, BLOCK_N: tl.constexpr):
    """`BLOCK_N` of dbias [words] = scale · Σ dlogits over the listed rows."""
    word = block * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([_SLOTS, BLOCK_N], tl.float32)
    for start in range(0, count, _SLOTS):
        slot = start + tl.arange(0, _SLOTS)
        at = dlogits_ptr + slot.to(tl.int64)[:, None] * width + word[None, :]
        inside = (slot < count)[:, None] & (word < width)[None, :]
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    result = (tl.sum(total, 0) * scale).to(dbias_ptr.dtype.element_ty)
    tl.store(dbias_ptr + word, result, mask=word < words)


@triton.jit
def _dx_tile(
    block, dlogits_ptr, weight_ptr, weight_stride, rows_ptr, sum_ptr, dx_ptr, scale, count, start, words, is_last,
    k, width, row_blocks,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of Σ dlogits · weight over the words so far: kept in sum [tokens, k] fp32, after the last words in dx."""
    first = (block % row_blocks) * BLOCK_M
    if first < count:
        slot = first + tl.arange(0, BLOCK_M)
        columns = (block // row_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        live, word = slot < count, tl.arange(0, BLOCK_K)
        inside = live[:, None] & (columns < k)[None, :]
        at = slot.to(tl.int64)[:, None] * k + columns[None, :]
        summed = slot < tl.where(start > 0, count, 0)
        total = tl.load(sum_ptr + at, mask=inside & summed[:, None], other=0.0)
        dlogits = dlogits_ptr + slot.to(tl.int64)[:, None] * width + word[None, :]
        weight = weight_ptr + word.to(tl.int64)[:, None] * weight_stride + columns[None, :]
        for first_word in range(0, words, BLOCK_K):  # dlogits goes on as zeros, weight ends
            there = (word < words - first_word)[:, None] & (columns < k)[None, :]
            a = tl.load(dlogits + first_word, mask=live[:, None], other=0.0)
            b = tl.load(weight, mask=there, other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
            weight += tl.cast(weight_stride, tl.int64) * BLOCK_K
        if is_last:
            row = tl.load(rows_ptr + slot, mask=live, other=0).to(tl.int64)
            at = row[:, None] * k + columns[None, :]
            tl.store(dx_ptr + at, (total * scale).to(dx_ptr.dtype.element_ty), mask=inside)
        else:
            tl.store(sum_ptr + at, total, mask=inside)


@triton.jit(
    do_not_specialize=[
        "num_items",
        "start",
        "words",
        "is_last",
        "row_blocks",
        "dw_blocks",
        "db_blocks",
    ]
)
def _cross_entropy_gradients_kernel(
    dlogits_ptr, listed_ptr, weight_ptr, weight_stride, rows_ptr, count_ptr, dloss_ptr, num_items, sum_ptr, dx_ptr,
    dweight_ptr, dbias_ptr, start, words, is_last, k, width, row_blocks, dw_blocks, db_blocks,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the words from `start` on give: blocks of three roles, a tile of dweight, words of dbias, a tile of dx."""
    block = tl.program_id(0)
    count = tl.load(count_ptr)
    scale = tl.where(count > 0, tl.load(dloss_ptr) / _items(count_ptr, num_items), 0.0)
    if block < dw_blocks:
        if dweight_ptr is not None:
            dweight = dweight_ptr + start.to(tl.int64) * k
            _dweight_tile(
                block, dlogits_ptr, listed_ptr, dweight, scale, count, words, k, width,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif block < dw_blocks + db_blocks:
        if dbias_ptr is not None:
            _dbias_words(
                block - dw_blocks,
                dlogits_ptr,
                dbias_ptr + start,
                scale,
                count,
                words,
                width,
                BLOCK_N,
            )
    elif dx_ptr is not None:
        weight = weight_ptr + start.to(tl.int64) * weight_stride
        _dx_tile(
            block - dw_blocks - db_blocks, dlogits_ptr, weight, weight_stride, rows_ptr, sum_ptr, dx_ptr, scale, count,
            start, words, is_last, k, width, row_blocks, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


def supports(direction: str, *args) -> str | None:
    """None where the Triton form computes this, else the reason."""
    return _triton.refuses(args[1 if direction == "backward" else 0], product=True)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, num_items: int | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `bertfast.ops.masked_cross_entropy`. Four launches; a label out of the vocabulary makes the loss NaN."""
    x, weight, bias, labels = _dense(x, weight, bias, labels)
    (tokens, k), vocabulary = x.shape, weight.shape[0]
    lse = x.new_empty(tokens, dtype=torch.float32)
    loss = x.new_empty((), dtype=torch.float32)
    rows, count = _listed(labels, ignore_index, lse)
    config = _pick(_LOGITS, x)
    row_blocks = cdiv(tokens, config.blocks["BLOCK_M"])
    spans = cdiv(vocabulary, config.blocks["SPAN"])
    partial = x.new_empty(3, spans, tokens, dtype=torch.float32)
    sums = x.new_empty(cdiv(tokens, _SLOTS.value), dtype=torch.float32)
    if tokens:
        _cross_entropy_spans_kernel[(row_blocks * spans,)](
            x, x.stride(0), weight, weight.stride(0), bias, labels, rows, count, partial, tokens, vocabulary, k,
            row_blocks, spans, PRECISION=precision(x), **config.options(),
        )  # fmt: skip
        _cross_entropy_combine_kernel[(sums.numel(),)](
            partial, labels, rows, count, lse, sums, tokens, vocabulary, spans, **_SMALL
        )
    _cross_entropy_loss_kernel[(1,)](sums, count, loss, sums.numel(), num_items, **_SMALL)
    return loss, lse


def backward(
    dloss: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, lse: Tensor, ignore_index: int,
    num_items: int | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.masked_cross_entropy`: gradients of x, weight, bias. Two launches a stretch of words."""
    x, weight, bias, labels = _dense(x, weight, bias, labels)
    tokens, k = x.shape
    new = torch.empty_like if tokens else torch.zeros_like
    dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    dweight = new(weight, memory_format=torch.contiguous_format) if needs[1] else None
    dbias = new(bias) if needs[2] and bias is not None else None
    if tokens and any(gradient is not None for gradient in (dx, dweight, dbias)):
        rows, count = _listed(labels, ignore_index, None)
        listed = x.new_empty(tokens, k)
        _cross_entropy_gather_kernel[(cdiv(tokens, 16), cdiv(k, 256))](
            x, x.stride(0), rows, count, listed, k, BLOCK_M=16, BLOCK_N=256, **_SMALL
        )
        terms = listed, weight, bias, labels, rows, count, lse.contiguous()
        _stretches(terms, dloss, num_items, (dx, dweight, dbias))
    return dx, dweight, dbias


def _stretches(terms, dloss, num_items, grads):
    """The gradients, one stretch of the vocabulary after another."""
    (listed, weight, bias, labels, rows, count, lse), (dx, dweight, dbias) = terms, grads
    (tokens, k), vocabulary = listed.shape, weight.shape[0]
    width = min(_STRETCH, _WIDTH * cdiv(vocabulary, _WIDTH))
    dlogits = listed.new_empty(tokens, width)
    several = dx is not None and vocabulary > width
    sums = listed.new_empty((tokens, k) if several else (1, 1), dtype=torch.float32)
    config, dloss = _pick(_BACKWARD, listed), dloss.float()
    m, n = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    row_blocks = cdiv(tokens, m)
    for start in range(0, vocabulary, width):
        words = min(width, vocabulary - start)
        _cross_entropy_dlogits_kernel[(row_blocks * cdiv(words, _WIDTH) * (_WIDTH // n),)](
            listed, weight, weight.stride(0), bias, labels, rows, count, lse, dlogits, start, vocabulary, k, width,
            row_blocks, PRECISION=precision(listed), **config.options(),
        )  # fmt: skip
        dw_blocks = 0 if dweight is None else cdiv(words, m) * cdiv(k, n)
        db_blocks = 0 if dbias is None else cdiv(words, n)
        dx_blocks = 0 if dx is None else row_blocks * cdiv(k, n)
        _cross_entropy_gradients_kernel[(dw_blocks + db_blocks + dx_blocks,)](
            dlogits, listed, weight, weight.stride(0), rows, count, dloss, num_items, sums, dx, dweight, dbias, start,
            words, int(start + words == vocabulary), k, width, row_blocks, dw_blocks, db_blocks,
            PRECISION=precision(listed), **config.options(),
        )  # fmt: skip


def _dense(x, weight, bias, labels):
    bias = None if bias is None else bias.contiguous()
    return dense_rows(x), dense_rows(thaw(weight)), bias, labels.contiguous()


def _listed(labels, ignore_index, lse):
    """(rows [T] int32, count [1] int32): the labelled rows first, on the device; lse of the others becomes 0."""
    rows = torch.empty_like(labels, dtype=torch.int32)
    count = rows.new_empty(1)
    _cross_entropy_list_kernel[(1,)](
        labels, rows, count, lse, labels.numel(), ignore_index, **_LISTING
    )
    return rows, count


def _pick(table: Table, x: Tensor) -> Config:
    """By precision for float32, else by how many tokens there are."""
    if x.dtype == torch.float32:
        return table.pick("tf32" if precision(x) == "tf32" else "fp32")
    return table.pick("many" if x.shape[0] > _MANY else "few")
