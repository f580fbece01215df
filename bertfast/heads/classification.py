"""The heads for tasks with labels of their own: texts, choices, tokens, and answers as spans of a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import BertConfig
from ..errors import ArgumentError, ConfigError
from ..outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from ..packing import Packed, row_a_sequence, take, unpack
from ..parts.dropout import drop
from ..parts.inputs import describe
from ._base import INPUTS, BertHead, classifier_dropout, drop_pooled, token_shape
from ._losses import by_problem, class_labels, cross_entropy, items, span


class BertForSequenceClassification(BertHead):
    """BERT with a classifier on the pooled first token: one label a text, several, or numbers (regression).

    Args:
        config: a `BertConfig`; num_labels (or id2label) says how many outputs, problem_type which loss.
        check_finite: what `forward` takes for `check_finite` when it is not told.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False):
        super().__init__(config, check_finite)
        self.num_labels = self.config.num_labels
        self.dropout = classifier_dropout(self.config)
        self.classifier = nn.Linear(self.config.hidden_size, self.num_labels)
        self._start_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput | tuple:
        """Scores [B, labels], and with labels the loss.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options: see `BertModel.forward`.
            labels: by config.problem_type, which the first labels decide where it is None:
                single_label_classification (integer labels): [B], cross entropy, -100 for none;
                multi_label_classification (other labels): [B, labels] from 0 to 1, binary cross entropy;
                regression (one output): [B] or [B, labels], mean squared error.
            num_items_in_batch: divide the loss's sum by this, instead of by the number of its terms.

        Raises:
            ArgumentError: an argument is wrong (labels out of range: on the CPU).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded, loss = self._encode(*inputs, first_only=True, **options), None
        logits = self.classifier(drop_pooled(self.dropout, encoded))
        if labels is not None:
            count = items(num_items_in_batch, logits.device)
            loss = by_problem(self.config, logits, labels, count)
        return self._finish(SequenceClassifierOutput, encoded, loss=loss, logits=logits)


class BertForMultipleChoice(BertHead):
    """BERT with one score a choice, from the pooled first token.

    Args:
        config: a `BertConfig`.
        check_finite: what `forward` takes for `check_finite` when it is not told.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False):
        super().__init__(config, check_finite)
        self.dropout = classifier_dropout(self.config)
        self.classifier = nn.Linear(self.config.hidden_size, 1)
        self._start_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> MultipleChoiceModelOutput | tuple:
        """Scores [B, choices], and with labels the loss.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: [B, choices, S]; inputs_embeds:
                [B, choices, S, H]; options: see `BertModel.forward`.
            labels: [B], which choice is right; -100 for none.
            num_items_in_batch: divide the sum of the losses by this, instead of by the number of labels.

        Raises:
            ArgumentError: an argument is wrong (labels out of range: on the CPU).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        choices, inputs = flat_choices(inputs)
        encoded, loss = self._encode(*inputs, first_only=True, **options), None
        logits = self.classifier(drop_pooled(self.dropout, encoded)).view(-1, choices)
        if labels is not None:
            count = items(num_items_in_batch, logits.device)
            targets = class_labels("labels", labels, logits.shape[:1], choices, logits.device)
            loss = cross_entropy(logits, targets, count)
        return self._finish(MultipleChoiceModelOutput, encoded, loss=loss, logits=logits)


class BertForTokenClassification(BertHead):
    """BERT with a classifier on every token.

    Args:
        config: a `BertConfig`; num_labels (or id2label) says how many labels.
        check_finite: what `forward` takes for `check_finite` when it is not told.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False):
        super().__init__(config, check_finite, pooler=False)
        self.num_labels = self.config.num_labels
        self.dropout = classifier_dropout(self.config)
        self.classifier = nn.Linear(self.config.hidden_size, self.num_labels)
        self._start_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> TokenClassifierOutput | tuple:
        """Scores [B, S, labels], zeros at padding, and with labels the loss.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options: see `BertModel.forward`.
            labels: [B,S], -100 for none; those at padding do not count.
            num_items_in_batch: divide the sum of the losses by this, instead of by the number of labels.

        Raises:
            ArgumentError: an argument is wrong (labels out of range: on the CPU).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded, loss = self._encode(*inputs, **options), None
        scores = self.classifier(drop(self.dropout, encoded.x, encoded.packed.cu_seqlens))
        if labels is not None:
            count, shape = items(num_items_in_batch, scores.device), token_shape(encoded)
            targets = class_labels("labels", labels, shape, self.num_labels, scores.device)
            loss = cross_entropy(scores, take(targets, encoded.packed), count)
        logits = unpack(scores, encoded.packed)
        return self._finish(TokenClassifierOutput, encoded, loss=loss, logits=logits)


class BertForQuestionAnswering(BertHead):
    """BERT with two scores a token: the answer starts, or ends, here.

    Args:
        config: a `BertConfig` with num_labels 2.
        check_finite: what `forward` takes for `check_finite` when it is not told.

    Raises:
        ConfigError: num_labels is not 2.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False):
        super().__init__(config, check_finite, pooler=False)
        self.num_labels = self.config.num_labels
        if self.num_labels != 2:
            raise ConfigError(
                f"num_labels: expected 2 (start and end of an answer), got {self.num_labels}. Pass num_labels=2."
            )
        self.qa_outputs = nn.Linear(self.config.hidden_size, 2)
        self._start_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> QuestionAnsweringModelOutput | tuple:
        """Scores [B,S] of an answer's start and of its end, and with both positions the mean of the two losses.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options: see `BertModel.forward`.
            start_positions, end_positions: [B], the column (in a packed call, the place in the sequence) of the
                answer's first and last token. One outside the row or at padding is ignored, a negative one is 0.
            num_items_in_batch: divide the sums of the losses by this, instead of by the number of answers.

        Raises:
            ArgumentError: an argument is wrong.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded, loss = self._encode(*inputs, **options), None
        scores = self.qa_outputs(encoded.x)  # [T,2]
        if start_positions is not None and end_positions is not None:
            count = items(num_items_in_batch, scores.device)
            rows = row_a_sequence(encoded.packed) if encoded.packed_call else encoded.packed
            columns, real = by_column(scores, rows)
            given = {"start_positions": start_positions, "end_positions": end_positions}
            losses = [
                span(columns[..., side], real, places(name, positions, columns), count)
                for side, (name, positions) in enumerate(given.items())
            ]
            loss = (losses[0] + losses[1]) / 2
        start, end = by_column(scores, encoded.packed)[0].unbind(-1)
        return self._finish(
            *(QuestionAnsweringModelOutput, encoded), loss=loss, start_logits=start, end_logits=end
        )


def flat_choices(inputs: tuple[Tensor | None, ...]) -> tuple[int, list[Tensor | None]]:
    """How many choices there are, and the inputs with each choice as a row: [B, choices, S] -> [B*choices, S].

    Raises:
        ArgumentError: an input is not of that form.
    """
    ids, *_, embeds = inputs
    name, given, dims = ("input_ids", ids, 3) if embeds is None else ("inputs_embeds", embeds, 4)
    if not isinstance(given, Tensor) or given.dim() != dims or given.shape[1] == 0:
        raise ArgumentError(name, "a tensor [batch, choices, length]", describe(given))
    shape, flat = given.shape[:3], []
    for name, value in zip(INPUTS, inputs, strict=True):
        if value is not None and value.shape[:3] != shape:
            raise ArgumentError(name, f"[batch, choices, length] {list(shape)}", describe(value))
        flat.append(None if value is None else value.flatten(0, 1))
    return shape[1], flat


def by_column(scores: Tensor, packed: Packed) -> tuple[Tensor, Tensor | None]:
    """Scores [T,2] as [B,S,2] with the lowest value at padding, and which places [B,S] are real (None: all)."""
    columns = unpack(scores, packed)
    if packed.indices is None:
        return columns, None
    real = unpack(torch.ones_like(scores[:, :1]), packed) != 0
    return columns.masked_fill(~real, torch.finfo(scores.dtype).min), real.squeeze(-1)


def places(name: str, positions: Tensor, columns: Tensor) -> Tensor:
    """One place [B] for each row of [B,S,2], of any value."""
    return class_labels(name, positions, (columns.shape[0],), None, columns.device)
