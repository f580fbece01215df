"""What `forward` was given, checked and brought to the form that the encoder runs on: a packed stream.

Every mistake is an `ArgumentError` that names the argument. Shapes, dtypes and devices are looked at on every call;
values (ranges) only on the CPU, where that costs no synchronisation, and never under `torch.compile`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, UnsupportedError
from ..packing import Packed, pack, sequence_positions, take

_INTEGERS = (torch.int64, torch.int32)
_MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DECODERS = "bertfast runs encoders; use transformers' BertModel for decoding and cross-attention."
_SHORTEN = "Truncate the text, or split it."
_REFUSED = {
    "encoder_hidden_states": _DECODERS,
    "encoder_attention_mask": _DECODERS,
    "past_key_values": _DECODERS,
    "cache": _DECODERS,
    "use_cache": _DECODERS,
    "is_causal": "Pass a 4-D attention_mask, or use transformers' BertModel.",
    "head_mask": "Use transformers' BertModel (before version 5, attn_implementation='eager').",
    "cross_attn_head_mask": _DECODERS,
}
_IGNORED = ("seq_idx", "output_cross_attentions")  # cu_seq_lens_q says what seq_idx says


class Stream(NamedTuple):
    """The checked input: T real tokens and where they belong.

    Fields:
        input_ids: [T] int64, or None where inputs_embeds [T,H] are given.
        position_ids, token_type_ids: [T] int64.
        packed: see `packing.Packed`.
        mask: a 4-D attention_mask as given; nothing is treated as padding then.
        packed_call: the caller packed the tokens (cu_seq_lens_q).
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    position_ids: Tensor
    token_type_ids: Tensor
    packed: Packed
    mask: Tensor | None
    packed_call: bool


class Limits(NamedTuple):
    """What the inputs are held against: rows of the position table, width, heads, device and dtype of the model."""

    positions: int
    hidden_size: int
    heads: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, embeddings: nn.Module, heads: int) -> Limits:
        positions, norm = embeddings.position_embeddings.weight, embeddings.LayerNorm.weight
        return cls(positions.shape[0], norm.shape[0], heads, norm.device, norm.dtype)


def refuse_unknown(arguments: dict[str, Any]) -> None:
    """Let through what says nothing (None, False); raise for the rest, naming what to use instead."""
    for name, value in arguments.items():
        if value is None or value is False or name in _IGNORED:
            continue
        if name in _REFUSED:
            raise UnsupportedError(f"{name} is not supported. {_REFUSED[name]}")
        advice = "See the help of BertModel.forward."
        raise ArgumentError(name, "no such argument", type(value).__name__, advice)


def make_stream(
    limits: Limits,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_k: int | None = None,
) -> Stream:
    """Check everything and pack it; the arguments are those of `BertModel.forward`."""
    batch, length = _check_tokens(limits, input_ids, inputs_embeds)
    for name, value in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        if value is not None:
            _check_rows(name, value, batch, length, limits.device)
    packed_call, four = cu_seq_lens_q is not None, False
    if packed_call:
        _check_packed_call(limits, attention_mask, batch, cu_seq_lens_q)
        longest = _check_starts(limits, cu_seq_lens_q, length, max_length_q, position_ids)
        _check_keys(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        packed = Packed(None, cu_seq_lens_q.to(torch.int32), longest, 1, length)
    else:
        _refuse_lengths(max_length_q, cu_seq_lens_k, max_length_k)
        if position_ids is None and length > limits.positions:
            name = "inputs_embeds" if input_ids is None else "input_ids"
            expected = f"at most {limits.positions} columns (max_position_embeddings)"
            raise ArgumentError(name, expected, str(length), _SHORTEN)
        if attention_mask is not None:
            four = _check_mask(attention_mask, batch, length, limits)
        packed = pack(None if four else attention_mask, batch, length, limits.device)
    return Stream(
        None if input_ids is None else take(input_ids, packed).long(),
        None if inputs_embeds is None else take(inputs_embeds, packed),
        _positions(position_ids, packed, packed_call, limits.device),
        _segments(token_type_ids, packed, limits.device),
        packed,
        attention_mask if four else None,
        packed_call,
    )


def describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        expected = f"a tensor on {device}, as the model is"
        raise ArgumentError(name, expected, str(value.device), "Move one of the two.")


def _check_tokens(
    limits: Limits, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> tuple[int, int]:
    if (input_ids is None) == (inputs_embeds is None):
        both = "neither" if input_ids is None else "both"
        raise ArgumentError("input_ids, inputs_embeds", "exactly one of the two", both)
    name = "input_ids" if inputs_embeds is None else "inputs_embeds"
    value = input_ids if inputs_embeds is None else inputs_embeds
    if inputs_embeds is None:
        if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype not in _INTEGERS:
            raise ArgumentError(name, "an int64 or int32 tensor [batch, length]", describe(value))
    elif not isinstance(value, Tensor) or value.dim() != 3 or value.shape[2] != limits.hidden_size:
        raise ArgumentError(
            name, f"a tensor [batch, length, {limits.hidden_size}]", describe(value)
        )
    elif value.dtype != limits.dtype and not torch.is_autocast_enabled(value.device.type):
        expected = f"{limits.dtype}, as the model is"
        raise ArgumentError(name, expected, str(value.dtype), "Convert one of the two.")
    check_device(name, value, limits.device)
    if value.shape[1] == 0:
        raise ArgumentError(
            name, "at least one column", describe(value), "Leave empty batches out."
        )
    return value.shape[0], value.shape[1]


def _check_rows(name: str, value: Tensor, batch: int, length: int, device: torch.device) -> None:
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    if shape not in ((batch, length), (1, length)) or value.dtype not in _INTEGERS:
        raise ArgumentError(name, f"an int64 or int32 tensor [{batch}, {length}]", describe(value))
    check_device(name, value, device)


def _check_mask(mask: Tensor, batch: int, length: int, limits: Limits) -> bool:
    """Whether the mask is 4-D, after checking it."""
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        expected = f"a tensor [{batch}, {length}], or 4-D [{batch}, heads, {length}, {length}]"
        raise ArgumentError("attention_mask", expected, describe(mask))
    check_device("attention_mask", mask, limits.device)
    if mask.dim() == 4:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            expected = "4-D: bool (True = may look) or additive float"
            raise ArgumentError("attention_mask", expected, describe(mask))
        sizes = ((1, batch), (1, limits.heads), (1, length), (length,))
        if any(size not in good for size, good in zip(mask.shape, sizes, strict=True)):
            expected = f"[{batch}, 1 or {limits.heads}, {length} or 1, {length}]"
            raise ArgumentError("attention_mask", expected, describe(mask))
        return True
    if mask.shape != (batch, length) or not (mask.dtype in _MASKS or mask.is_floating_point()):
        expected = f"a bool, integer or float tensor [{batch}, {length}]"
        raise ArgumentError("attention_mask", expected, describe(mask))
    if mask.is_floating_point() and values_readable(mask) and mask.numel() and mask.min() < 0:
        advice = "An additive mask has four dimensions: mask[:, None, None, :]."
        raise ArgumentError("attention_mask", "0 or 1 in 2-D", "negative values", advice)
    return False


def values_readable(value: Tensor) -> bool:
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_packed_call(
    limits: Limits, attention_mask: Tensor | None, batch: int, cu_seq_lens: Tensor
) -> None:
    if batch != 1:
        raise ArgumentError("input_ids", "[1, total] with cu_seq_lens_q", f"{batch} rows")
    if attention_mask is not None:
        expected = "None with cu_seq_lens_q"
        raise ArgumentError("attention_mask", expected, describe(attention_mask))
    if (
        not isinstance(cu_seq_lens, Tensor)
        or cu_seq_lens.dim() != 1
        or cu_seq_lens.dtype not in _INTEGERS
    ):
        raise ArgumentError(
            "cu_seq_lens_q", "an int32 tensor [sequences + 1]", describe(cu_seq_lens)
        )
    if cu_seq_lens.shape[0] == 0:
        raise ArgumentError("cu_seq_lens_q", "at least its 0", describe(cu_seq_lens))
    check_device("cu_seq_lens_q", cu_seq_lens, limits.device)


def _refuse_lengths(max_length_q, cu_seq_lens_k, max_length_k) -> None:
    given = {
        "max_length_q": max_length_q,
        "cu_seq_lens_k": cu_seq_lens_k,
        "max_length_k": max_length_k,
    }
    for name, value in given.items():
        if value is not None:
            expected = f"the starts of the sequences, as {name} is given"
            raise ArgumentError("cu_seq_lens_q", expected, "None")


def _check_starts(
    limits: Limits,
    cu_seq_lens: Tensor,
    total: int,
    max_length: int | None,
    position_ids: Tensor | None,
) -> int:
    """An upper bound of the lengths: the longest itself where the values can be read."""
    if not values_readable(cu_seq_lens):
        return total if max_length is None else int(max_length)
    starts = cu_seq_lens.tolist()
    lengths = [end - start for start, end in pairwise(starts)]
    if starts[0] != 0 or starts[-1] != total or min(lengths, default=0) < 0:
        shown = f"{starts[:8]}{'...' if len(starts) > 8 else ''}, ending at {starts[-1]}"
        expected = f"starts that rise from 0 to {total}, the columns of input_ids"
        raise ArgumentError("cu_seq_lens_q", expected, shown)
    longest = max(lengths, default=0)
    if max_length is not None and longest > max_length:
        expected = f"at least {longest}, the longest sequence"
        raise ArgumentError("max_length_q", expected, str(max_length))
    if position_ids is None and longest > limits.positions:
        expected = f"sequences of at most {limits.positions} tokens (max_position_embeddings)"
        raise ArgumentError("cu_seq_lens_q", expected, str(longest), _SHORTEN)
    return longest


def _check_keys(
    queries: Tensor, keys: Tensor | None, max_queries: int | None, max_keys: int | None
) -> None:
    if keys is not None and keys is not queries:
        same = tuple(keys.shape) == tuple(queries.shape) if isinstance(keys, Tensor) else False
        if not same or (
            values_readable(queries) and values_readable(keys) and not torch.equal(keys, queries)
        ):
            expected = "the same as cu_seq_lens_q"
            raise ArgumentError("cu_seq_lens_k", expected, describe(keys), _DECODERS)
    if max_keys is not None and max_queries is not None and max_keys != max_queries:
        expected = f"{max_queries}, as max_length_q"
        raise ArgumentError("max_length_k", expected, str(max_keys), _DECODERS)


def _positions(
    position_ids: Tensor | None, packed: Packed, packed_call: bool, device: torch.device
) -> Tensor:
    """[T] int64. Positions are the columns of the batch, also under left padding; packed calls restart a sequence."""
    if position_ids is not None:
        return take(position_ids.expand(packed.batch, packed.length), packed).long()
    if packed_call:
        return sequence_positions(packed.cu_seqlens, packed.length)
    if packed.indices is not None:
        return packed.indices % packed.length
    return torch.arange(packed.length, device=device).repeat(packed.batch)


def _segments(token_type_ids: Tensor | None, packed: Packed, device: torch.device) -> Tensor:
    if token_type_ids is None:
        total = packed.batch * packed.length if packed.indices is None else packed.indices.shape[0]
        return torch.zeros(total, dtype=torch.int64, device=device)
    return take(token_type_ids.expand(packed.batch, packed.length), packed).long()
