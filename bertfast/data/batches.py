"""Examples of a plan as one packed batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .plan import Spans
from .store import Store


class Batch(NamedTuple):
    """B sequences, T tokens in all, without padding; on the CPU.

    Fields:
        input_ids: int64 [1, T]: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].
        token_type_ids: int64 [1, T]: 1 for b and the [SEP] after it.
        cu_seqlens: int32 [B+1], where each sequence starts, and the end.
        max_seqlen: of the longest.
        labels: int64 [1, T]: the true id of a token that is to be predicted, -100 elsewhere.
        next_sentence_label: int64 [B]: 0 where b follows a, 1 where it does not; None without next sentences.
        example_ids: int64 [B]: epoch * examples + index.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    labels: Tensor
    next_sentence_label: Tensor | None
    example_ids: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device; to a GPU while the host goes on."""
        if device.type == "cpu":
            return self
        return Batch(
            *(
                item.pin_memory().to(device, non_blocking=True)
                if isinstance(item, Tensor)
                else item
                for item in self
            )
        )


def join(batches: Sequence[Batch]) -> Batch:
    """Batches one after the other as one."""
    if len(batches) == 1:
        return batches[0]
    ends = [0]
    for item in batches:
        ends.append(ends[-1] + int(item.cu_seqlens[-1]))
    starts = [item.cu_seqlens[:-1] + end for item, end in zip(batches, ends, strict=False)]
    pairs = batches[0].next_sentence_label is not None
    return Batch(
        torch.cat([item.input_ids for item in batches], 1),
        torch.cat([item.token_type_ids for item in batches], 1),
        torch.cat([*starts, torch.tensor(ends[-1:], dtype=torch.int32)]),
        max(item.max_seqlen for item in batches),
        torch.cat([item.labels for item in batches], 1),
        torch.cat([item.next_sentence_label for item in batches]) if pairs else None,
        torch.cat([item.example_ids for item in batches]),
    )


class Sequences(NamedTuple):
    """B sequences of ids before masking.

    Fields:
        tokens: int64 [T]. types: int64 [T], token types. special: bool [T].
        cu_seqlens: int64 [B+1].
        starts_word: bool [T]; None unless asked for.
    """

    tokens: np.ndarray
    types: np.ndarray
    special: np.ndarray
    cu_seqlens: np.ndarray
    starts_word: np.ndarray | None


def assemble(store: Store, spans: Spans, words: bool) -> Sequences:
    """The tokens of spans, with special ones; with `words`, also which start a word."""
    pairs = spans.follows is not None
    lengths = spans.first_length + spans.second_length + (3 if pairs else 2)
    ends = np.cumsum(lengths)
    cu_seqlens = np.concatenate([[0], ends])
    total, start = int(cu_seqlens[-1]), cu_seqlens[:-1]
    middle = start + spans.first_length + 1
    tokens, types = np.empty(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    special = np.zeros(total, dtype=bool)
    tokens[start] = store.cls
    for place in (middle, ends - 1):
        tokens[place] = store.sep
        special[place] = True
    special[start] = True
    if pairs:
        types[middle[:-1] + 1] = (
            1  # a running sum of +1 at each second side, -1 at the next sequence
        )
        types[start[1:]] = -1
        types[middle[-1:] + 1] = 1
        np.cumsum(types, out=types)
    starts_word = np.ones(total, dtype=bool) if words else None
    sides = [(spans.first, spans.first_length, start + 1)]
    if pairs:
        sides.append((spans.second, spans.second_length, middle + 1))
    for source, count, place in sides:
        store.copy_tokens(source, count.tolist(), tokens, place.tolist())
        if words:
            store.copy_words(source, count.tolist(), starts_word, place.tolist())
    return Sequences(tokens, types, special, cu_seqlens, starts_word)


def batch(
    sequences: Sequences,
    inputs: np.ndarray,
    labels: np.ndarray,
    follows: np.ndarray | None,
    example_ids: np.ndarray,
) -> Batch:
    """The tensors of masked sequences."""
    lengths = np.diff(sequences.cu_seqlens)
    return Batch(
        torch.from_numpy(inputs)[None],
        torch.from_numpy(sequences.types)[None],
        torch.from_numpy(sequences.cu_seqlens.astype(np.int32)),
        int(lengths.max(initial=0)),
        torch.from_numpy(labels)[None],
        None if follows is None else torch.from_numpy((~follows).astype(np.int64)),
        torch.from_numpy(example_ids),
    )
