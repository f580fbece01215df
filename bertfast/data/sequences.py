"""Sequences of token ids in memory, for tasks whose examples fit there, and packed batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """B sequences, T tokens in all, without padding.

    Fields:
        input_ids, token_type_ids: int64 [1, T]. cu_seqlens: int32 [B+1]. max_seqlen: of the longest.
        example_ids: int64 [B], what dropout counts by.
        labels: by the name of a head's argument.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    example_ids: Tensor
    labels: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        """The same on a device; to a GPU while the host goes on."""
        if device.type == "cpu":
            return self

        def move(item: Any) -> Any:
            if isinstance(item, Tensor):
                return item.pin_memory().to(device, non_blocking=True)
            return {k: move(v) for k, v in item.items()} if isinstance(item, Mapping) else item

        return Batch(*map(move, self))

    @property
    def inputs(self) -> dict[str, Any]:
        """By the names of a model's arguments."""
        return {
            "input_ids": self.input_ids,
            "token_type_ids": self.token_type_ids,
            "cu_seq_lens_q": self.cu_seqlens,
            "max_length_q": self.max_seqlen,
            "example_ids": self.example_ids,
        }


class Sequences:
    """Ids with their special tokens, one sequence after the other.

    Args:
        rows: of each sequence its ids and its segment ids.
        owner: the number of the example that each sequence is made of.
        details: of each example, what its answer is read with.
        cut: how many examples lost tokens.

    Attributes:
        tokens: int32 [T]. types: uint8 [T]. starts: int64 [n+1]. lengths: int32 [n]. owner: int64 [n]. details, cut.
    """

    def __init__(
        self,
        rows: Iterable[tuple[list[int], list[int]]],
        owner: Iterable[int],
        details: list[Any] | None = None,
        cut: int = 0,
    ):
        rows = list(rows)
        self.lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        total = int(self.starts[-1])
        self.tokens = np.fromiter(chain.from_iterable(ids for ids, _ in rows), np.int32, total)
        self.types = np.fromiter(chain.from_iterable(types for _, types in rows), np.uint8, total)
        self.owner = np.fromiter(owner, np.int64, len(rows))
        self.details, self.cut = details, cut

    def __len__(self) -> int:
        return len(self.lengths)

    def places(self, indices: np.ndarray) -> np.ndarray:
        """Where the tokens of some sequences stand in `tokens`: int64."""
        lengths = self.lengths[indices].astype(np.int64)
        ends = np.cumsum(lengths)
        shift = np.repeat(self.starts[indices] - (ends - lengths), lengths)
        return np.arange(len(shift)) + shift

    def batch(
        self, indices: np.ndarray, example_ids: np.ndarray, labels: Mapping[str, Tensor]
    ) -> Batch:
        """Some sequences, packed; int64 [B] both."""
        places, lengths = self.places(indices), self.lengths[indices]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return Batch(
            torch.from_numpy(self.tokens[places].astype(np.int64))[None],
            torch.from_numpy(self.types[places].astype(np.int64))[None],
            torch.from_numpy(cu_seqlens),
            int(lengths.max(initial=0)),
            torch.from_numpy(example_ids),
            labels,
        )
