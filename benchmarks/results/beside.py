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

    The losses are those of its logits, divided by the totals that the loop gives.
    """

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.model = BertForPreTraining(ours.config)
        self.model.load_state_dict(ours.state_dict())
        self.config = ours.config

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

        def rows(values: Tensor, fill: int) -> Tensor:
            parts = values[0].split(lengths)
            return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)

        output = self.model(
            input_ids=rows(input_ids, 0),
            attention_mask=rows(torch.ones_like(input_ids), 0),
            token_type_ids=rows(token_type_ids, 0),
        )
        targets, related = rows(labels, IGNORED), output.seq_relationship_logits
        words = F.cross_entropy(
            output.prediction_logits.flatten(0, 1), targets.flatten(), reduction="sum"
        )
        pairs = F.cross_entropy(related, next_sentence_label, reduction="sum")
        loss = words / num_items_in_batch + pairs / num_sequences_in_batch
        labelled = output.prediction_logits[targets != IGNORED]
        return SimpleNamespace(
            loss=loss, seq_relationship_logits=related, prediction_logits=labelled.detach()
        )
