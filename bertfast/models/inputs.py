"""What `forward` was given, by transformers' names, checked and packed.

Every mistake is an `ArgumentError` that names the argument. Shapes, dtypes and devices are looked at on every call;
values (ranges) only on the CPU, where that costs no synchronisation, and never under `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.batch import PackedBatch, pack, sequence_positions
from ..core.encode import Tokens
from ..core.heads import IGNORED, Items
from ..core.weights import BertWeights
from ..errors import ArgumentError

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
STARTS = ("cu_seq_lens_q", "max_length_q", "cu_seq_lens_k", "max_length_k")
_INTEGERS = (torch.int64, torch.int32)
_MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SHORTEN = "Truncate the text, or split it."


class Checked(NamedTuple):
    """The sizes of a call: B and S of a padded batch; of a packed one 1, its tokens, a bound of the lengths."""

    rows: int
    length: int
    bound: int | None = None


def check(weights: BertWeights, given: Mapping[str, Any]) -> Checked:
    """Look at what `make_batch` will be given.

    Raises:
        ArgumentError: an argument is wrong.
    """
    ids, mask, segments, positions, embeds = (given.get(name) for name in INPUTS)
    rows, length = _check_tokens(weights, ids, embeds)
    for name, value in (("token_type_ids", segments), ("position_ids", positions)):
        if value is not None:
            _check_integers(name, value, weights.device, (rows, length), (1, length))
    starts, longest, key_starts, longest_key = (given.get(name) for name in STARTS)
    if starts is None:
        _refuse_lengths(given)
        name = "inputs_embeds" if ids is None else "input_ids"
        if positions is None and length > weights.max_positions:
            expected = f"at most {weights.max_positions} columns (max_position_embeddings)"
            raise ArgumentError(name, expected, str(length), _SHORTEN)
        if mask is not None:
            _check_mask(mask, rows, length, weights.device)
        _check_examples(given, rows, weights.device)
        return Checked(rows, length)
    _check_packed_call(weights, mask, rows, starts)
    bound = _check_starts(weights, starts, length, longest, positions)
    _check_keys(starts, key_starts, longest, longest_key)
    _check_examples(given, starts.shape[0] - 1, weights.device)
    return Checked(rows, length, bound)


def make_batch(weights: BertWeights, given: Mapping[str, Any], checked: Checked) -> PackedBatch:
    """The tokens of a call: a padded batch [B,S], or one packed by the caller, [1,total] with cu_seq_lens_q."""
    ids, mask, segments, positions, embeds = (given.get(name) for name in INPUTS)
    rows, length, bound = checked
    tokens = {"input_ids": ids, "inputs_embeds": embeds, "token_type_ids": segments}
    examples = given.get("example_ids")
    if bound is None:
        batch = pack(mask, rows, length, weights.device, position_ids=positions, **tokens)
        return batch._replace(example_ids=examples)
    starts = given["cu_seq_lens_q"].to(torch.int32)
    if positions is None:
        positions = sequence_positions(starts, length)[None]
    batch = pack(None, 1, length, weights.device, position_ids=positions, **tokens)
    return batch._replace(cu_seqlens=starts, max_seqlen=bound, example_ids=examples)


def padded_tokens(given: Mapping[str, Any]) -> Tokens | None:
    """The tokens of a padded batch as they were given; None for one that the caller packed, and without ids."""
    if "cu_seq_lens_q" in given or given.get("input_ids") is None:
        return None
    return Tokens(*(given.get(name) for name in Tokens._fields))


def describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        expected = f"a tensor on {device}, as the model is"
        raise ArgumentError(name, expected, str(value.device), "Move one of the two.")


def _check_tokens(
    weights: BertWeights, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> tuple[int, int]:
    if (input_ids is None) == (inputs_embeds is None):
        both = "neither" if input_ids is None else "both"
        raise ArgumentError("input_ids, inputs_embeds", "exactly one of the two", both)
    by_ids = inputs_embeds is None
    name, value = ("input_ids", input_ids) if by_ids else ("inputs_embeds", inputs_embeds)
    if by_ids:
        if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype not in _INTEGERS:
            raise ArgumentError(name, "an int64 or int32 tensor [batch, length]", describe(value))
    elif not isinstance(value, Tensor) or value.dim() != 3 or value.shape[2] != weights.hidden_size:
        expected = f"a tensor [batch, length, {weights.hidden_size}]"
        raise ArgumentError(name, expected, describe(value))
    elif value.dtype != weights.dtype and not torch.is_autocast_enabled(value.device.type):
        expected = f"{weights.dtype}, as the model is"
        raise ArgumentError(name, expected, str(value.dtype), "Convert one of the two.")
    _check_device(name, value, weights.device)
    if value.shape[1] == 0:
        got = describe(value)
        raise ArgumentError(name, "at least one column", got, "Leave empty batches out.")
    return value.shape[0], value.shape[1]


def _check_integers(
    name: str, value: Tensor, device: torch.device, shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    """Integers of a shape, or of the other that stands for it."""
    found = tuple(value.shape) if isinstance(value, Tensor) else None
    if found not in (shape, other) or value.dtype not in _INTEGERS:
        raise ArgumentError(name, f"an int64 or int32 tensor {list(shape)}", describe(value))
    _check_device(name, value, device)


def _check_examples(given: Mapping[str, Any], count: int, device: torch.device) -> None:
    """The ids of a call with `count` sequences."""
    ids = given.get("example_ids")
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (count,):
        expected = f"an int64 tensor [{count}], an id for each sequence"
        raise ArgumentError("example_ids", expected, describe(ids))
    _check_device("example_ids", ids, device)


def _check_mask(mask: Tensor, batch: int, length: int, device: torch.device) -> None:
    numbers = isinstance(mask, Tensor) and (mask.dtype in _MASKS or mask.is_floating_point())
    if not numbers or mask.shape != (batch, length):
        expected = f"a bool, integer or float tensor [{batch}, {length}]"
        raise ArgumentError("attention_mask", expected, describe(mask))
    _check_device("attention_mask", mask, device)
    if mask.is_floating_point() and _readable(mask) and mask.numel() and mask.min() < 0:
        advice = "An additive mask has four dimensions: mask[:, None, None, :]."
        raise ArgumentError("attention_mask", "0 or 1 in 2-D", "negative values", advice)


def _readable(value: Tensor) -> bool:
    """Whether values may be looked at."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_packed_call(
    weights: BertWeights, attention_mask: Tensor | None, rows: int, starts: Tensor
) -> None:
    if rows != 1:
        raise ArgumentError("input_ids", "[1, total] with cu_seq_lens_q", f"{rows} rows")
    if attention_mask is not None:
        expected = "None with cu_seq_lens_q"
        raise ArgumentError("attention_mask", expected, describe(attention_mask))
    if not isinstance(starts, Tensor) or starts.dim() != 1 or starts.dtype not in _INTEGERS:
        raise ArgumentError("cu_seq_lens_q", "an int32 tensor [sequences + 1]", describe(starts))
    if starts.shape[0] == 0:
        raise ArgumentError("cu_seq_lens_q", "at least its 0", describe(starts))
    _check_device("cu_seq_lens_q", starts, weights.device)


def _refuse_lengths(given: Mapping[str, Any]) -> None:
    for name in STARTS[1:]:
        if given.get(name) is not None:
            expected = f"the starts of the sequences, as {name} is given"
            raise ArgumentError("cu_seq_lens_q", expected, "None")


def _check_starts(
    weights: BertWeights,
    cu_seq_lens: Tensor,
    total: int,
    max_length: int | None,
    position_ids: Tensor | None,
) -> int:
    """An upper bound of the lengths: the longest itself where the values can be read."""
    if not _readable(cu_seq_lens):
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
    if position_ids is None and longest > weights.max_positions:
        expected = f"sequences of at most {weights.max_positions} tokens (max_position_embeddings)"
        raise ArgumentError("cu_seq_lens_q", expected, str(longest), _SHORTEN)
    return longest


def _check_keys(
    queries: Tensor, keys: Tensor | None, max_queries: int | None, max_keys: int | None
) -> None:
    if keys is not None and keys is not queries:
        same = tuple(keys.shape) == tuple(queries.shape) if isinstance(keys, Tensor) else False
        read = same and _readable(queries) and _readable(keys)
        if not same or (read and not torch.equal(keys, queries)):
            expected = "the same as cu_seq_lens_q (an encoder attends to its own tokens)"
            raise ArgumentError("cu_seq_lens_k", expected, describe(keys))
    if max_keys is not None and max_queries is not None and max_keys != max_queries:
        expected = f"{max_queries}, as max_length_q"
        raise ArgumentError("max_length_k", expected, str(max_keys))


# Choices


def flat_choices(given: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many choices there are, and the inputs with each choice as a row: [B, choices, S] -> [B*choices, S].

    Of a batch that the caller packed, `num_choices` sequences in a row are one example's.

    Raises:
        ArgumentError: an input is not of that form.
    """
    if "cu_seq_lens_q" in given:
        return _packed_choices(given), dict(given)
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    name, first, dims = ("input_ids", ids, 3) if embeds is None else ("inputs_embeds", embeds, 4)
    if not isinstance(first, Tensor) or first.dim() != dims or first.shape[1] == 0:
        raise ArgumentError(name, "a tensor [batch, choices, length]", describe(first))
    shape, flat = first.shape[:3], dict(given)
    for name in INPUTS:
        value = given.get(name)
        if value is not None and value.shape[:3] != shape:
            raise ArgumentError(name, f"[batch, choices, length] {list(shape)}", describe(value))
        flat[name] = None if value is None else value.flatten(0, 1)
    examples = given.get("example_ids")
    if examples is not None:
        if not isinstance(examples, Tensor) or examples.shape != shape[:2]:
            expected = f"[batch, choices] {list(shape[:2])}"
            raise ArgumentError("example_ids", expected, describe(examples))
        flat["example_ids"] = examples.flatten()
    return shape[1], flat


def _packed_choices(given: Mapping[str, Any]) -> int:
    choices, starts = given.get("num_choices"), given["cu_seq_lens_q"]
    if not isinstance(choices, int) or isinstance(choices, bool) or choices < 1:
        raise ArgumentError("num_choices", "how many choices a packed example has", repr(choices))
    count = starts.shape[0] - 1 if isinstance(starts, Tensor) and starts.dim() == 1 else 0
    if count % choices:
        expected = f"the starts of a multiple of {choices} sequences (num_choices)"
        raise ArgumentError("cu_seq_lens_q", expected, f"those of {count}")
    return choices


# Labels


def class_labels(
    name: str, labels: Tensor, shape: tuple[int, ...], classes: int | None, device: torch.device
) -> Tensor:
    """Integer labels as int64 of `shape` ([B] may come as [B,1]), each in [0, classes) or `IGNORED` (None: any).

    Raises:
        ArgumentError: a wrong dtype, shape, device, or (on the CPU) value.
    """
    shape = tuple(shape)
    _check_integers(name, labels, device, shape, (*shape, 1) if len(shape) == 1 else shape)
    labels = labels.reshape(shape).long()
    if classes is not None and _readable(labels):
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            got = f"{int(labels[tuple(place)])} at {place}"
            raise ArgumentError(name, f"labels in [0, {classes}) or {IGNORED}", got)
    return labels


def number_labels(labels: Tensor, scores: Tensor, problem: str) -> Tensor:
    """Labels that are numbers, in the shape of the scores [B,C]: as they are, and from 0 to 1 for several labels.

    Raises:
        ArgumentError: a wrong shape, device, or (on the CPU) value.
    """
    shape = tuple(scores.shape)
    flat = (shape[0],) if shape[1] == 1 else shape
    if not isinstance(labels, Tensor) or tuple(labels.shape) not in (shape, flat):
        expected = f"a tensor {list(shape)} for problem_type {problem!r}"
        raise ArgumentError("labels", expected, describe(labels))
    _check_device("labels", labels, scores.device)
    labels = labels.reshape(shape)
    if problem == "multi_label_classification" and _readable(labels) and labels.numel():
        low, high = (value.item() for value in torch.aminmax(labels))
        if low < 0 or high > 1:
            raise ArgumentError("labels", "values from 0 to 1", f"values from {low:g} to {high:g}")
    return labels


def items(num_items: Items, device: torch.device, name: str = "num_items_in_batch") -> Items:
    """The argument as the losses take it.

    Raises:
        ArgumentError: neither None nor one number that is not negative.
    """
    if isinstance(num_items, Tensor) and num_items.numel() == 1:
        return num_items.reshape(()).to(device)
    whole = isinstance(num_items, int) and not isinstance(num_items, bool) and num_items >= 0
    if num_items is not None and not whole:
        got = describe(num_items) if isinstance(num_items, Tensor) else repr(num_items)
        raise ArgumentError(name, "None, a count, or a tensor with one", got)
    return num_items
