"""A batch without padding: the real tokens of all sequences one after the other, and the way back to [B,S].

The mask is read at most once, and not at all when the lengths come from the host or there is no mask. The rest is
differentiable. Under `torch.compile` each function is a `torch.library` operation (the number of real tokens is a
dynamic size there); in plain eager mode it calls torch straight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import extension
from ..ops._contract import through_library


class PackedBatch(NamedTuple):
    """The T real tokens of a batch, and where they lie in the padded batch [B,S].

    Fields:
        input_ids: [T] int64; or None, with inputs_embeds: [T,H].
        position_ids, token_type_ids: [T] int64; None where rows are there already (`all_places`).
        cu_seqlens: [sequences+1] int32, on the device: sequence b is the tokens cu_seqlens[b] to cu_seqlens[b+1].
        max_seqlen: an upper bound of the lengths that the host knows.
        batch, length: B and S of the padded batch; 1 and T where the caller packed.
        indices: [T] int64, place of each token in the flattened [B*S]; None: every place holds a real token.
        example_ids: [sequences] int64, by which dropout counts the sequences, so that it drops the same in any batch;
            None: by their indices.
        padding: there is a row for each place, those of padding too (`all_places`).
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    position_ids: Tensor | None
    token_type_ids: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    batch: int
    length: int
    indices: Tensor | None = None
    example_ids: Tensor | None = None
    padding: bool = False

    @property
    def tokens(self) -> int:
        """T."""
        return self.batch * self.length if self.indices is None else self.indices.shape[0]

    @property
    def is_dense(self) -> bool:
        """Whether every row of [B,S] is one sequence of S tokens, as far as the host knows."""
        rows = self.cu_seqlens.shape[0] - 1
        whole = self.indices is None and not self.padding
        return whole and rows == self.batch and self.max_seqlen == self.length


def pack(
    attention_mask: Tensor | None,
    batch: int,
    length: int,
    device: torch.device | str,
    *,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    position_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
) -> PackedBatch:
    """The real tokens of a padded batch.

    Args:
        attention_mask: [B,S] bool, integer or float, nonzero = real token (anywhere in the row); None: all are real.
        batch, length: B and S.
        input_ids, position_ids, token_type_ids: [B,S] or [1,S]; inputs_embeds [B,S,H]. Positions default to the
            columns of the batch (also under left padding), segments to 0.
    """
    if attention_mask is None:
        indices = None
        cu_seqlens = torch.arange(
            0, batch * length + 1, max(length, 1), dtype=torch.int32, device=device
        )
    elif torch.compiler.is_compiling():
        indices, cu_seqlens = _pack_op(attention_mask)
    else:
        indices, cu_seqlens = _pack(attention_mask)
        if indices.shape[0] == batch * length:  # a mask of ones: nothing to gather
            indices = None
    if position_ids is not None:
        positions = rows_of(position_ids.expand(batch, length), indices).long()
    elif indices is not None:
        positions = indices % length
    else:
        positions = torch.arange(length, device=device)
        positions = positions if batch == 1 else positions.repeat(batch)
    if token_type_ids is None:
        segments = torch.zeros_like(positions)
    else:
        segments = rows_of(token_type_ids.expand(batch, length), indices).long()
    return PackedBatch(
        input_ids=None if input_ids is None else rows_of(input_ids, indices).long(),
        inputs_embeds=None if inputs_embeds is None else rows_of(inputs_embeds, indices),
        position_ids=positions,
        token_type_ids=segments,
        cu_seqlens=cu_seqlens,
        max_seqlen=length,
        batch=batch,
        length=length,
        indices=indices,
    )


def all_places(
    cu_seqlens: Tensor, batch: int, length: int, example_ids: Tensor | None
) -> PackedBatch:
    """The batch of rows that are there already, one for each place of [B,S]; cu_seqlens are of the real tokens."""
    places = (cu_seqlens, length, batch, length)
    return PackedBatch(None, None, None, None, *places, example_ids=example_ids, padding=True)


def pack_rows(rows: Sequence[Sequence[int]], device: torch.device | str) -> PackedBatch:
    """Lists of token ids, whose lengths the host knows: no mask, nothing read back. Segments are 0.

    All goes over as one array; to a GPU from pinned memory, while the host goes on.
    """
    lengths = [len(row) for row in rows]
    total, starts = sum(lengths), torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)
    ids = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int64)
    positions = torch.tensor(list(chain.from_iterable(map(range, lengths))), dtype=torch.int64)
    room = total + total % 2  # parts start at multiples of 16 bytes, as Triton compiles kernels for
    sent = torch.zeros(2 * room + len(starts), dtype=torch.int64)
    sent[:total], sent[room : room + total], sent[2 * room :] = ids, positions, starts
    if torch.device(device).type == "cuda":
        sent = sent.pin_memory()
    sent = sent.to(device, non_blocking=True)
    ids, positions, starts = sent[:total], sent[room : room + total], sent[2 * room :]
    return PackedBatch(
        input_ids=ids,
        inputs_embeds=None,
        position_ids=positions,
        token_type_ids=torch.zeros_like(positions),
        cu_seqlens=starts.int(),
        max_seqlen=max(lengths, default=0),
        batch=1,
        length=total,
    )


def take(values: Tensor, batch: PackedBatch) -> Tensor:
    """Rows of the real tokens: [B,S,...] -> [T,...]."""
    return rows_of(values, batch.indices)


def rows_of(values: Tensor, indices: Tensor | None) -> Tensor:
    """[B,S,...] -> [T,...], the rows at `indices` of the flattened [B*S] (None: all)."""
    values = values.flatten(0, 1)
    return values if indices is None else values.index_select(0, indices)


def unpack(x: Tensor, batch: PackedBatch) -> Tensor:
    """Put packed rows back where they came from: [T,H] -> [B,S,H], zeros at padded positions."""
    if batch.indices is not None:
        scatter = _unpack_op if torch.compiler.is_compiling() else _unpack
        x = scatter(x, batch.indices, batch.batch * batch.length)
    return x.view(batch.batch, batch.length, x.shape[-1])


def first_rows(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The first row of every sequence: [T,H] -> [B,H], zeros for a sequence of length 0."""
    return (_first_rows_op if torch.compiler.is_compiling() else _first_rows)(x, cu_seqlens)


def one_row_each(cu_seqlens: Tensor) -> Tensor:
    """The cu_seqlens of what `first_rows` gives: dropout's counters are those of the first tokens."""
    return torch.arange(cu_seqlens.shape[0], dtype=torch.int32, device=cu_seqlens.device)


def row_a_sequence(batch: PackedBatch) -> PackedBatch:
    """For a batch that the caller packed, one row [1,T]: the same laid out [sequences, max_seqlen], for `unpack`."""
    row, position = _places(batch.cu_seqlens, batch.tokens)
    sequences, indices = batch.cu_seqlens.shape[0] - 1, row * batch.max_seqlen + position
    return batch._replace(batch=sequences, length=batch.max_seqlen, indices=indices)


def sequence_positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """Position of each token inside its own sequence: [total] int64."""
    return _places(cu_seqlens, total)[1]


def _places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(sequence, position in it) of each token."""
    token = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.bucketize(token, cu_seqlens[1:], right=True)
    return sequence, token - cu_seqlens.index_select(0, sequence)


def _pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    keep = mask if mask.dtype == torch.bool else mask != 0
    lengths = keep.sum(1, dtype=torch.int32)
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return keep.flatten().nonzero().squeeze(1), cu_seqlens


def _unpack(x: Tensor, indices: Tensor, size: int) -> Tensor:
    gradient = torch.is_grad_enabled() and x.requires_grad
    if x.is_cpu and extension.cpu is not None and not gradient and not through_library():
        return extension.scatter_rows(x, indices, size)
    return x.new_zeros(size, x.shape[1]).index_copy(0, indices, x)


def _first_rows(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    if x.shape[0] == 0:  # nothing to select from, yet every sequence has its row of zeros
        x = F.pad(x, (0, 0, 0, 1))
    start, end = cu_seqlens[:-1], cu_seqlens[1:]
    rows = x.index_select(0, start.clamp(max=x.shape[0] - 1))
    return rows.masked_fill((start == end)[:, None], 0)


def _first_rows_bwd(dout: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    dx = dout.new_zeros(total + 1, dout.shape[1])  # the last row takes what empty sequences send
    start, end = cu_seqlens[:-1].long(), cu_seqlens[1:]
    return dx.index_copy_(0, torch.where(start == end, total, start), dout)[:total].clone()


# The same functions as operations of torch.library, for torch.compile.


def dynamic_size() -> torch.SymInt:
    """A size that depends on data. torch.compile breaks its graph at `newdynamic_size` unless a global option says
    otherwise; the encoder needs no other of that option's operations, so the size is made without asking for it."""
    context = torch.library.get_ctx()
    shape_env = getattr(context, "_shape_env", None)
    if shape_env is None:
        return context.newdynamic_size()
    from torch.fx.experimental import symbolic_shapes

    size = shape_env.create_unbacked_symint()
    symbolic_shapes._constrain_range_for_size(size, min=0)
    return size


def as_operation(schema: str, function: Callable, fake: Callable) -> torch.library.CustomOpDef:
    """`bertfast::<schema>`, and the fake that tells the shape of its results."""
    name, _, signature = schema.partition("(")
    op = torch.library.custom_op(
        f"bertfast::{name}", function, mutates_args=(), schema=f"({signature}"
    )
    op.register_fake(fake)
    return op


def _pack_fake(mask):
    indices = mask.new_empty(dynamic_size(), dtype=torch.int64)
    return indices, mask.new_empty(mask.shape[0] + 1, dtype=torch.int32)


_pack_op = as_operation("pack(Tensor mask) -> (Tensor, Tensor)", _pack, _pack_fake)
_unpack_op = as_operation(
    "unpack(Tensor x, Tensor indices, SymInt size) -> Tensor",
    _unpack,
    lambda x, indices, size: x.new_empty(size, x.shape[1]),
)
_first_rows_op = as_operation(
    "first_rows(Tensor x, Tensor cu_seqlens) -> Tensor",
    _first_rows,
    lambda x, cu_seqlens: x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1]),
)
_first_rows_bwd_op = as_operation(
    "first_rows_bwd(Tensor dout, Tensor cu_seqlens, SymInt total) -> Tensor",
    _first_rows_bwd,
    lambda dout, cu_seqlens, total: dout.new_empty(total, dout.shape[1]),
)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])  # indices, or cu_seqlens
    ctx.total = inputs[0].shape[0]


def _unpack_backward(ctx, dout):
    return dout.index_select(0, ctx.saved_tensors[0]), None, None


def _first_rows_backward(ctx, dout):
    return _first_rows_bwd_op(dout, ctx.saved_tensors[0], ctx.total), None


_unpack_op.register_autograd(_unpack_backward, setup_context=_setup)
_first_rows_op.register_autograd(_first_rows_backward, setup_context=_setup)
