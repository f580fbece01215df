"""transformers' model in our loop: the same examples, optimizer and steps; its batches are padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForPreTraining

IGNORED = -100


class Padded(nn.Module):
    """transformers' `BertForPreTraining`, called with packed batches as the loop calls bertfast's.

    The losses are those of its logits, divided by the totals that the loop gives. `rows` at a time are computed, of
    like lengths, as a whole batch that is padded to its longest text takes longer; None: the batch, as its users have
    it.
    """

    def __init__(self, ours: nn.Module, rows: int | None = None):
        super().__init__()
        self.model = BertForPreTraining(ours.config)
        self.model.load_state_dict(ours.state_dict())
        self.config, self.rows = ours.config, rows

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        cu_seq_lens_q: Tensor,
        labels: Tensor,
        next_sentence_label: Tensor,
        num_items_in_batch: int,
        num_sequences_in_batch: int,
        output_logits: Any = None,
        **_: Any,
    ) -> SimpleNamespace:
        lengths = cu_seq_lens_q.diff().tolist()
        ids, types, words = (
            values[0].split(lengths) for values in (input_ids, token_type_ids, labels)
        )
        found, related = [torch.empty(0)] * len(lengths), [torch.empty(0)] * len(lengths)
        for some in of_like_lengths(lengths, self.rows):
            output = self.model(
                input_ids=padded([ids[i] for i in some]),
                attention_mask=padded([torch.ones_like(ids[i]) for i in some]),
                token_type_ids=padded([types[i] for i in some]),
            )
            for row, index in enumerate(some):
                logits = output.prediction_logits[row, : lengths[index]]
                found[index] = logits[words[index] != IGNORED]
                related[index] = output.seq_relationship_logits[row]
        predicted, pairs = torch.cat(found), torch.stack(related)
        targets = labels[labels != IGNORED]
        loss = F.cross_entropy(predicted, targets, reduction="sum") / num_items_in_batch
        told = F.cross_entropy(pairs, next_sentence_label, reduction="sum")
        return SimpleNamespace(
            loss=loss + told / num_sequences_in_batch,
            seq_relationship_logits=pairs,
            prediction_logits=predicted.detach(),
        )


def of_like_lengths(lengths: Sequence[int], rows: int | None) -> Iterator[list[int]]:
    """The texts' indices, so many at a time and the shortest first; None: all at once."""
    order, step = sorted(range(len(lengths)), key=lengths.__getitem__), rows or len(lengths)
    return (order[first : first + step] for first in range(0, len(order), step))


def padded(texts: list[Tensor]) -> Tensor:
    """[texts, longest], zeros behind."""
    return nn.utils.rnn.pad_sequence(texts, batch_first=True)
