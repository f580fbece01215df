"""Packing: a padded batch [B,S] becomes one stream of its real tokens [T], once per forward, and comes back once.

`pack` reads the mask at most once, and not at all when the lengths come from the host or there is no mask. The rest
is differentiable. Under `torch.compile` each function is a `torch.library` operation (the number of real tokens is
a dynamic size there); in plain eager mode it calls torch straight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ArgumentError


class Packed(NamedTuple):
    """Where the T tokens of a packed stream lie in the padded batch [B,S].

    Fields:
        indices: [T] int64, place of each token in the flattened [B*S]; None: every place holds a real token.
        cu_seqlens: [B+1] int32, on the device: sequence b is the tokens cu_seqlens[b] to cu_seqlens[b+1].
        max_seqlen: an upper bound of the lengths that the host knows.
        batch, length: B and S of the padded batch.
        fixed: the stream has a fixed capacity; surplus rows have the index B*S and belong to no sequence.
    """

    indices: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    batch: int
    length: int
    fixed: bool = False


def pack(
    attention_mask: Tensor | None,
    batch: int,
    length: int,
    device: torch.device | str,
    capacity: int | None = None,
) -> Packed:
    """Find the real tokens of a padded batch.

    Args:
        attention_mask: [B,S] bool, integer or float, nonzero = real token (anywhere in the row); None: all are real.
        batch, length: B and S.
        device: where cu_seqlens is made when there is no mask.
        capacity: keep buffers of this many tokens whatever the mask says, without reading it on the host (what
            capturing a CUDA graph needs); T is then cu_seqlens[-1], on the device. A mask with more real tokens than
            that is an error on the CPU; elsewhere the surplus tokens are left out of every sequence.

    Raises:
        ArgumentError: capacity is negative, or on the CPU too small.
    """
    if capacity is not None:
        return _pack_fixed(attention_mask, batch, length, device, capacity)
    if attention_mask is None:
        cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=device) * length
        return Packed(None, cu_seqlens, length, batch, length)
    if torch.compiler.is_compiling():
        return Packed(*_pack_op(attention_mask), length, batch, length)
    indices, cu_seqlens = _pack(attention_mask)
    if indices.shape[0] == batch * length:  # a mask of ones: nothing to gather
        indices = None
    return Packed(indices, cu_seqlens, length, batch, length)


def pack_lengths(lengths: Sequence[int], device: torch.device | str) -> Packed:
    """A stream [1,T] that is packed already, from lengths that the host knows: no mask, nothing read back."""
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Packed(None, cu_seqlens.to(device), max(lengths, default=0), 1, sum(lengths))


def take(values: Tensor, packed: Packed) -> Tensor:
    """Rows of the real tokens: [B,S,...] -> [T,...]; zeros in the surplus rows of a fixed capacity."""
    values = values.flatten(0, 1)
    if packed.indices is None:
        return values
    if packed.fixed:
        values = F.pad(values, (0, 0) * (values.dim() - 1) + (0, 1))
    return values.index_select(0, packed.indices)


def unpack(x: Tensor, packed: Packed) -> Tensor:
    """Put packed rows back where they came from: [T,H] -> [B,S,H], zeros at padded positions."""
    places = packed.batch * packed.length
    if packed.indices is not None:
        scatter = _unpack_op if torch.compiler.is_compiling() else _unpack
        x = scatter(x, packed.indices, places + packed.fixed)[:places]
    return x.view(packed.batch, packed.length, x.shape[-1])


def first_rows(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The first row of every sequence: [T,H] -> [B,H], zeros for a sequence of length 0."""
    return (_first_rows_op if torch.compiler.is_compiling() else _first_rows)(x, cu_seqlens)


def one_row_each(cu_seqlens: Tensor) -> Tensor:
    """The cu_seqlens of what `first_rows` gives: dropout's counters are those of the first tokens."""
    return torch.arange(cu_seqlens.shape[0], dtype=torch.int32, device=cu_seqlens.device)


def row_a_sequence(packed: Packed) -> Packed:
    """The same tokens laid out [sequences, max_seqlen], each sequence at the left edge of its row, for `unpack`.

    For a stream that the caller packed: one row [1,T].
    """
    total, starts = packed.length, packed.cu_seqlens
    token = torch.arange(total, device=starts.device)
    row = torch.bucketize(token, starts[1:], right=True)
    places = row * packed.max_seqlen + sequence_positions(starts, total)
    return Packed(places, starts, packed.max_seqlen, starts.shape[0] - 1, packed.max_seqlen)


def sequence_positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """Position of each token inside its own sequence: [total] int64."""
    token = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.bucketize(token, cu_seqlens[1:], right=True)
    return token - cu_seqlens.index_select(0, sequence)


def _pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    keep = mask if mask.dtype == torch.bool else mask != 0
    lengths = keep.sum(1, dtype=torch.int32)
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return keep.flatten().nonzero().squeeze(1), cu_seqlens


def _pack_fixed(
    mask: Tensor | None, batch: int, length: int, device: torch.device | str, capacity: int
) -> Packed:
    if capacity < 0:
        raise ArgumentError("capacity", "a number of tokens", str(capacity))
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=device)
    keep, places = mask.flatten() != 0, batch * length
    slot = keep.cumsum(0) - 1
    slot = torch.where(keep & (slot < capacity), slot, capacity)  # the last takes what is left out
    indices = torch.full((capacity + 1,), places, dtype=torch.int64, device=mask.device)
    indices = indices.scatter_(0, slot, torch.arange(places, device=mask.device))[:capacity]
    cu_seqlens = F.pad((mask != 0).sum(1).cumsum(0, dtype=torch.int32), (1, 0))
    if (
        mask.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and cu_seqlens[-1] > capacity
    ):
        raise ArgumentError(
            "capacity", f"at least the {int(cu_seqlens[-1])} real tokens of the mask", str(capacity)
        )
    return Packed(indices, cu_seqlens.clamp(max=capacity), length, batch, length, True)


def _unpack(x: Tensor, indices: Tensor, places: int) -> Tensor:
    return x.new_zeros(places, x.shape[1]).index_copy(0, indices, x)


def _first_rows(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    if x.shape[0] == 0:  # nothing to select from, yet every sequence has its row of zeros
        x = F.pad(x, (0, 0, 0, 1))
    start, end = cu_seqlens[:-1], cu_seqlens[1:]
    rows = x.index_select(0, start.clamp(max=x.shape[0] - 1))
    return rows.masked_fill((start == end)[:, None], 0)


# The same functions as operations of torch.library, for torch.compile.

_pack_op = torch.library.custom_op(
    "bertfast::pack", mutates_args=(), schema="(Tensor mask) -> (Tensor, Tensor)"
)(_pack)


@_pack_op.register_fake
def _(mask):
    total = torch.library.get_ctx().new_dynamic_size()
    return mask.new_empty(total, dtype=torch.int64), mask.new_empty(
        mask.shape[0] + 1, dtype=torch.int32
    )


_unpack_op = torch.library.custom_op(
    "bertfast::unpack",
    mutates_args=(),
    schema="(Tensor x, Tensor indices, SymInt places) -> Tensor",
)(_unpack)


@_unpack_op.register_fake
def _(x, indices, places):
    return x.new_empty(places, x.shape[1])


def _unpack_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _unpack_backward(ctx, dout):
    return dout.index_select(0, ctx.saved_tensors[0]), None, None


_unpack_op.register_autograd(_unpack_backward, setup_context=_unpack_setup)
_first_rows_op = torch.library.custom_op(
    "bertfast::first_rows", mutates_args=(), schema="(Tensor x, Tensor cu_seqlens) -> Tensor"
)(_first_rows)


@_first_rows_op.register_fake
def _(x, cu_seqlens):
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


@torch.library.custom_op(
    "bertfast::first_rows_bwd",
    mutates_args=(),
    schema="(Tensor dout, Tensor cu_seqlens, SymInt total) -> Tensor",
)
def _first_rows_bwd(dout: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    dx = dout.new_zeros(total + 1, dout.shape[1])  # the last row takes what empty sequences send
    start, end = cu_seqlens[:-1].long(), cu_seqlens[1:]
    return dx.index_copy_(0, torch.where(start == end, total, start), dout)[:total].clone()


@_first_rows_bwd.register_fake
def _(dout, cu_seqlens, total):
    return dout.new_empty(total, dout.shape[1])


def _first_rows_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.total = inputs[0].shape[0]


def _first_rows_backward(ctx, dout):
    return _first_rows_bwd(dout, ctx.saved_tensors[0], ctx.total), None


_first_rows_op.register_autograd(_first_rows_backward, setup_context=_first_rows_setup)
