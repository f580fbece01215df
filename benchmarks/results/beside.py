"""transformers' model in our loop: the same examples, optimizer and steps; its batches are padded."""

from __future__ import annotations

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
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        texts = [
            values[0].split(lengths)
            for values in (input_ids, torch.ones_like(input_ids), token_type_ids, labels)
        ]
        words, related = [torch.empty(0)] * len(order), [torch.empty(0)] * len(order)
        step = self.rows or len(order)
        for some in (order[first : first + step] for first in range(0, len(order), step)):
            ids, mask, types, targets = (_rows([part[i] for i in some]) for part in texts)
            output = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
            for index, found, pair, row, length in zip(
                some,
                output.prediction_logits,
                output.seq_relationship_logits,
                targets,
                mask.sum(1),
                strict=True,
            ):
                words[index] = found[:length][row[:length] != IGNORED]
                related[index] = pair
        predicted, pairs = torch.cat(words), torch.stack(related)
        targets = labels[labels != IGNORED]
        loss = F.cross_entropy(predicted, targets, reduction="sum") / num_items_in_batch
        told = F.cross_entropy(pairs, next_sentence_label, reduction="sum")
        return SimpleNamespace(
            loss=loss + told / num_sequences_in_batch,
            seq_relationship_logits=pairs,
            prediction_logits=predicted.detach(),
        )


def _rows(texts: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(texts, batch_first=True)
