"""Launcher of the Triton backend: labelled rows only, the vocabulary in pieces, never a [T, vocabulary] matrix.

How many rows have a label is known on the device alone. A first kernel lists them; the grids are sized for T rows, and
blocks beyond the list exit. Forward: a block walks a span of the vocabulary for its rows with an online log-sum-exp;
the spans are combined in their order. Backward: for one stretch of the vocabulary after another, the gradient of the
logits goes to a scratch [T, `_STRETCH`], from which one launch takes dx, dweight and dbias. No atomics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...extension import with_dense_rows
from .. import _triton
from .._triton import Config, Table, cdiv, precision
from .._weights import unpacked
from ._triton_backward import (
    _cross_entropy_dlogits_kernel,
    _cross_entropy_gather_kernel,
    _cross_entropy_gradients_kernel,
)
from ._triton_forward import (
    SLOTS,
    _cross_entropy_combine_kernel,
    _cross_entropy_list_kernel,
    _cross_entropy_loss_kernel,
    _cross_entropy_spans_kernel,
)

_MANY = 256  # tokens from which blocks have many rows; labels stand at a part of them
_STRETCH = 4096  # entries whose gradients of logits are in memory at once
_WIDTH = 128  # its rows are whole multiples of this, as this is of every block size: no tile needs a mask there


def _table(name: str, span: dict[str, int], few_k: int, fp32_registers: int | None = None) -> Table:
    """Block shapes of a kernel that holds logits; `span`: {"SPAN": entries of a block} where it walks several tiles."""

    def shape(m: int, n: int, k: int, *options: int | None) -> Config:
        return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, **span}, *options)

    entries = {
        "many": shape(128, 128, 32, 8, 4),
        "few": shape(32, 64, few_k, 4, 3),
        "tf32": shape(64, 64, 32, 4, 3, 255),
        "fp32": shape(64, 64, 16, 8, 2, fp32_registers),
    }
    # wgmma and tcgen05 take operands from shared memory: deeper tiles cost no registers there
    deep = entries | {"many": shape(128, 128, 64, 8, 3)}
    return Table(name, {80: entries, 90: deep, 120: entries})


_LOGITS = _table("cross_entropy_forward", {"SPAN": 256}, 128, fp32_registers=255)
_BACKWARD = _table("cross_entropy_backward", {}, 64)
_SMALL = {"num_warps": 4, "num_stages": 1}  # of the kernels that hold no product
_GATHERED = 256  # elements of a row that a block gathers
_LISTING = {"num_warps": 8, "num_stages": 1}  # of the one that lists rows


def supports(call) -> str | None:
    reason, most = _triton.refuses(call.lead, product=True), _triton.MOST_BLOCKS * _GATHERED
    if reason is None and call.x.shape[1] > most:
        return f"{call.x.shape[1]} features; the triton backend computes up to {most}"
    return reason


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, num_items: int | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `bertfast.ops.masked_cross_entropy`. Four launches; a label out of the vocabulary makes the loss NaN."""
    x, weight, bias, labels = _dense(x, weight, bias, labels)
    (tokens, k), vocab_size = x.shape, weight.shape[0]
    lse = x.new_empty(tokens, dtype=torch.float32)
    loss = x.new_empty((), dtype=torch.float32)
    rows, count = _listed(labels, ignore_index, lse)
    config = _pick(_LOGITS, x)
    row_blocks = cdiv(tokens, config.blocks["BLOCK_M"])
    spans = cdiv(vocab_size, config.blocks["SPAN"])
    partial = x.new_empty(3, spans, tokens, dtype=torch.float32)
    sums = x.new_empty(cdiv(tokens, SLOTS.value), dtype=torch.float32)
    if tokens:
        _cross_entropy_spans_kernel[(row_blocks * spans,)](
            x, x.stride(0), weight, weight.stride(0), bias, labels, rows, count, partial, tokens, vocab_size, k,
            row_blocks, spans, PRECISION=precision(x), **config.options(),
        )  # fmt: skip
        _cross_entropy_combine_kernel[(sums.numel(),)](
            partial, labels, rows, count, lse, sums, tokens, vocab_size, spans, **_SMALL
        )
    _cross_entropy_loss_kernel[(1,)](sums, count, loss, sums.numel(), num_items, **_SMALL)
    return loss, lse


def backward(
    dloss: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, lse: Tensor, ignore_index: int,
    num_items: int | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.masked_cross_entropy`: gradients of x, weight, bias. Two launches a stretch of entries."""
    x, weight, bias, labels = _dense(x, weight, bias, labels)
    (tokens, k), vocab_size = x.shape, weight.shape[0]
    new = torch.empty_like if tokens else torch.zeros_like
    dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    dweight = new(weight, memory_format=torch.contiguous_format) if needs[1] else None
    dbias = new(bias) if needs[2] and bias is not None else None
    if not tokens or all(gradient is None for gradient in (dx, dweight, dbias)):
        return dx, dweight, dbias
    rows, count = _listed(labels, ignore_index, None)
    listed = x.new_empty(tokens, k)
    _cross_entropy_gather_kernel[(cdiv(tokens, 16), cdiv(k, _GATHERED))](
        x, x.stride(0), rows, count, listed, k, BLOCK_M=16, BLOCK_N=_GATHERED, **_SMALL
    )
    width = min(_STRETCH, _WIDTH * cdiv(vocab_size, _WIDTH))
    dlogits = listed.new_empty(tokens, width)
    several = dx is not None and vocab_size > width
    sums = listed.new_empty((tokens, k) if several else (1, 1), dtype=torch.float32)
    config, dloss, lse = _pick(_BACKWARD, x), dloss.float(), lse.contiguous()
    m, n = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    row_blocks = cdiv(tokens, m)
    for start in range(0, vocab_size, width):
        entries = min(width, vocab_size - start)
        _cross_entropy_dlogits_kernel[(row_blocks * cdiv(entries, _WIDTH) * (_WIDTH // n),)](
            listed, weight, weight.stride(0), bias, labels, rows, count, lse, dlogits, start, vocab_size, k, width,
            row_blocks, PRECISION=precision(x), **config.options(),
        )  # fmt: skip
        dw_blocks = 0 if dweight is None else cdiv(entries, m) * cdiv(k, n)
        db_blocks = 0 if dbias is None else cdiv(entries, n)
        dx_blocks = 0 if dx is None else row_blocks * cdiv(k, n)
        _cross_entropy_gradients_kernel[(dw_blocks + db_blocks + dx_blocks,)](
            dlogits, listed, weight, weight.stride(0), rows, count, dloss, num_items, sums, dx, dweight, dbias, start,
            entries, int(start + entries == vocab_size), k, width, row_blocks, dw_blocks, db_blocks,
            PRECISION=precision(x), **config.options(),
        )  # fmt: skip
    return dx, dweight, dbias


def _dense(x, weight, bias, labels):
    bias = None if bias is None else bias.contiguous()
    return with_dense_rows(x), with_dense_rows(unpacked(weight)), bias, labels.contiguous()


def _listed(labels, ignore_index, lse):
    """(rows [T] int32, count [1] int32): the labelled rows first, on the device; lse of the others becomes 0."""
    rows = torch.empty_like(labels, dtype=torch.int32)
    count = rows.new_empty(1)
    tokens = labels.numel()
    _cross_entropy_list_kernel[(1,)](labels, rows, count, lse, tokens, ignore_index, **_LISTING)
    return rows, count


def _pick(table: Table, x: Tensor) -> Config:
    """By precision for float32, else by how many tokens there are."""
    if x.dtype == torch.float32:
        return table.pick("tf32" if precision(x) == "tf32" else "fp32")
    many = x.shape[0] > _MANY or dispatch.is_batch_invariant()
    return table.pick("many" if many else "few")
