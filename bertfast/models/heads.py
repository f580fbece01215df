"""The task heads: transformers' classes of those names with another engine.

Their losses count what the encoder computes: a label at padding does not count, and `num_items_in_batch`, where Trainer
gives it, divides the sum of a loss, so that accumulated gradients are those of the large batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import modeling_outputs as outputs
from transformers.models.bert import modeling_bert

from ..core import heads
from ..core.batch import one_row_each, row_a_sequence, take, unpack
from ..core.encode import dropout
from ..core.linear import linear
from ..core.weights import MaskedLMWeights
from ..errors import ArgumentError
from ..ops._seed import draw_seed
from . import fusion
from .bert import BertModel, switch
from .capture import AUTO, Capturable
from .engine import LABELS, TRANSFORMERS_4, Encoded, arguments, encode, finish, signed_as, theirs
from .inputs import class_labels, flat_choices, items, number_labels
from .loading import CheckedLoading
from .prepack import Prepackable

HEADS: dict[type[nn.Module], type[nn.Module]] = {}  # transformers' class -> ours


class Head(CheckedLoading, Prepackable, Capturable):
    """What all heads share. A subclass says in `_encode` what it needs and in `_answer` what it makes of the rows."""

    _theirs: type[nn.Module]  # transformers' class of the same name
    _first_only = False  # whether each sequence's first row is enough

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "_theirs" in cls.__dict__:
            HEADS[cls._theirs] = cls
            cls.forward = signed_as(cls._theirs, Head.forward)

    def __init__(self, config: Any, *args: Any, graphs: str | bool = AUTO, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        if type(self.bert) is modeling_bert.BertModel:
            switch(self.bert)
        self.graphs = graphs

    @property
    def graphs(self) -> str | bool:
        """That of its `bert`."""
        return self.bert.graphs

    @graphs.setter
    def graphs(self, graphs: str | bool) -> None:
        self.bert.graphs = graphs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' forward: its arguments, its output; also what `BertModel.forward` takes besides.

        Args:
            num_items_in_batch: divide the sum of the loss by this, instead of by the number of its terms.
            example_ids: as in `BertModel.forward`; [batch, choices] for inputs [batch, choices, length].

        Raises:
            ArgumentError: an argument is wrong (labels out of range: on the CPU).
        """
        given = arguments(self._theirs, args, kwargs)
        encoded = self._reason() or self._encode(given)
        if isinstance(encoded, str):
            return theirs(self, self._theirs, encoded, given)
        return self._answer(encoded, given)

    def _reason(self) -> str | None:
        """Why the head's own modules cannot be given rows, or None."""
        try:
            fusion.exact(self.bert, BertModel, "bert")
            for name, module in self._modules.items():
                if name != "bert":
                    self._check(name, module)
        except fusion.Unfit as unfit:
            return str(unfit)
        return fusion.reason_of_all()

    def _check(self, name: str, module: nn.Module) -> None:
        """Raise Unfit for a module of the head that somebody observes, as it would see other shapes."""
        for inner in module.modules():
            if reason := fusion.reason_of(inner, name):
                raise fusion.Unfit(reason)

    def _encode(self, given: dict[str, Any]) -> Encoded | str:
        return encode(self.bert, given, self._first_only, self._takes_padding(given))

    def _takes_padding(self, given: dict[str, Any]) -> bool:
        """Whether rows of padding may be among those of tokens."""
        return False

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        """The output of a call; each head has its own."""
        raise TypeError(f"{type(self).__name__}: expected one of bertfast's heads")

    def _linear(self, parent: nn.Module, name: str, x: Tensor) -> Tensor:
        """What a head's last module makes of x [...,H]; that of transformers as the core computes it."""
        module = parent._modules[name]
        weights = fusion.plain_linear(module)
        if weights is None:
            return module(x)
        return linear(x.flatten(0, -2), weights.weight, weights.bias).unflatten(0, x.shape[:-1])

    def _class_loss(self, scores: Tensor, given: dict[str, Any]) -> Tensor | None:
        """Cross entropy of scores [B,C] with the labels [B] of a call; None without labels."""
        if "labels" not in given:
            return None
        (rows, classes), device = scores.shape, scores.device
        labels = class_labels("labels", given["labels"], (rows,), classes, device)
        return heads.cross_entropy(scores, labels, _items(given, scores))

    def _finish(self, kind: type, encoded: Encoded, given: dict[str, Any], **fields: Any) -> Any:
        return finish(self, kind, given, **fields, hidden_states=encoded.hidden_states)


class PooledHead(Head):
    """A head on the pooled first tokens. Its modules get [B,H], as in transformers, so hooks on them are welcome."""

    _first_only = True

    def _check(self, name: str, module: nn.Module) -> None:
        pass

    def _dropped(self, encoded: Encoded) -> Tensor:
        batch = encoded.batch
        starts = one_row_each(batch.cu_seqlens)
        return _drop(self.dropout, encoded.pooled, starts, batch.example_ids)


class BertForSequenceClassification(PooledHead, modeling_bert.BertForSequenceClassification):
    """BERT with a classifier on the pooled first token: one label a text, several, or numbers (regression)."""

    _theirs = modeling_bert.BertForSequenceClassification

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        scores = self._linear(self, "classifier", self._dropped(encoded))
        loss = self._loss(scores, given) if "labels" in given else None
        kind = outputs.SequenceClassifierOutput
        return self._finish(kind, encoded, given, loss=loss, logits=scores)

    def _loss(self, scores: Tensor, given: dict[str, Any]) -> Tensor:
        """By config.problem_type, which the first labels decide where it is None, as in transformers."""
        config, labels = self.config, given["labels"]
        if config.problem_type is None:
            config.problem_type = infer_problem(scores.shape[1], labels)
        if config.problem_type == "single_label_classification":
            return self._class_loss(scores, given)
        count = _items(given, scores)
        labels = number_labels(labels, scores, config.problem_type)
        numbers = config.problem_type == "regression"
        return (heads.regression if numbers else heads.several_labels)(scores, labels, count)


def infer_problem(classes: int, labels: Tensor) -> str:
    """transformers' rule: one output is regression, integer labels are classes, other labels are several at once."""
    if classes == 1:
        return "regression"
    integers = isinstance(labels, Tensor) and labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if integers else "multi_label_classification"


class BertForMultipleChoice(PooledHead, modeling_bert.BertForMultipleChoice):
    """BERT with one score a choice, from the pooled first token; inputs [B, choices, S], or packed with num_choices."""

    _theirs = modeling_bert.BertForMultipleChoice

    def _encode(self, given: dict[str, Any]) -> Encoded | str:
        return encode(self.bert, flat_choices(given)[1], True)

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        choices, _ = flat_choices(given)
        scores = self._linear(self, "classifier", self._dropped(encoded)).view(-1, choices)
        loss = self._class_loss(scores, given)
        kind = outputs.MultipleChoiceModelOutput
        return self._finish(kind, encoded, given, loss=loss, logits=scores)


class BertForNextSentencePrediction(PooledHead, modeling_bert.BertForNextSentencePrediction):
    """BERT with the head that tells whether the second sentence follows the first (0) or not (1)."""

    _theirs = modeling_bert.BertForNextSentencePrediction

    def _pairs(self, encoded: Encoded) -> Tensor:
        own = type(self.cls) is modeling_bert.BertOnlyNSPHead
        if own and not fusion.reason_of(self.cls, "cls"):
            return self._linear(self.cls, "seq_relationship", encoded.pooled)
        return self.cls(encoded.pooled)

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        scores = self._pairs(encoded)
        if TRANSFORMERS_4 and "next_sentence_label" in given:  # its old name, which 4 still takes
            given["labels"] = given["next_sentence_label"]
        loss = self._class_loss(scores, given)
        kind = outputs.NextSentencePredictorOutput
        return self._finish(kind, encoded, given, loss=loss, logits=scores)


class BertForTokenClassification(Head, modeling_bert.BertForTokenClassification):
    """BERT with a classifier on every token; logits [B,S,labels] are zeros at padding."""

    _theirs = modeling_bert.BertForTokenClassification

    def _check(self, name: str, module: nn.Module) -> None:
        """The classifier gets the rows of all texts at once, so it has to work row by row."""
        super()._check(name, module)
        fusion.linear(self, "classifier", None, "")
        fusion.dropout(self._modules.get("dropout"), "dropout")

    def _takes_padding(self, given: dict[str, Any]) -> bool:
        """Not with dropout, which counts real tokens."""
        return not (_labelled(given) or self.dropout.training)

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        batch, loss = encoded.batch, None
        rows = _drop(self.dropout, encoded.rows, batch.cu_seqlens, batch.example_ids)
        scores = self._linear(self, "classifier", rows[None])[0]
        if "labels" in given:
            shape = (batch.batch, batch.length)
            labels = class_labels("labels", given["labels"], shape, self.num_labels, scores.device)
            loss = heads.cross_entropy(scores, take(labels, batch), _items(given, scores))
        logits = _padded(unpack(scores, batch), encoded, 0.0)
        return self._finish(outputs.TokenClassifierOutput, encoded, given, loss=loss, logits=logits)


class BertForQuestionAnswering(Head, modeling_bert.BertForQuestionAnswering):
    """BERT with two scores a token: the answer starts, or ends, here; the lowest value at padding."""

    _theirs = modeling_bert.BertForQuestionAnswering

    def _check(self, name: str, module: nn.Module) -> None:
        super()._check(name, module)
        fusion.linear(self, "qa_outputs", None, "")

    def _takes_padding(self, given: dict[str, Any]) -> bool:
        return not _labelled(given)

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        scores, loss = self._linear(self, "qa_outputs", encoded.rows[None])[0], None  # [T,2]
        names = ("start_positions", "end_positions")
        if all(name in given for name in names):
            batch = row_a_sequence(encoded.batch) if encoded.packed_call else encoded.batch
            columns, real = heads.span_scores(scores, batch)
            count, losses = _items(given, scores), []
            for side, name in enumerate(names):
                rows = columns.shape[:1]
                place = class_labels(name, given[name], rows, None, scores.device)
                losses.append(heads.span_loss(columns[..., side], real, place, count))
            loss = (losses[0] + losses[1]) / 2
        columns = heads.span_scores(scores, encoded.batch)[0]
        start, end = _padded(columns, encoded, torch.finfo(scores.dtype).min).unbind(-1)
        fields = {"loss": loss, "start_logits": start, "end_logits": end}
        return self._finish(outputs.QuestionAnsweringModelOutput, encoded, given, **fields)


class MaskedLMHead(Head):
    """What the two heads share that tell the words behind [MASK]: labelled rows only where no logits are wanted.

    With labels logits are made unless the model is in train mode, or as `output_logits` says: True, False, or
    "labelled", which makes those of labelled tokens alone, [labels, vocab_size], without a gradient.
    """

    def _masked_lm(self) -> MaskedLMWeights:
        """The head's weights. Raises Unfit."""
        kinds = (modeling_bert.BertOnlyMLMHead, modeling_bert.BertPreTrainingHeads)
        predictions = fusion.exact(self.cls, kinds, "cls")._modules.get("predictions")
        fusion.exact(predictions, modeling_bert.BertLMPredictionHead, "cls.predictions")
        transform, where = predictions._modules.get("transform"), "cls.predictions.transform."
        fusion.exact(transform, modeling_bert.BertPredictionHeadTransform, where.rstrip("."))
        return MaskedLMWeights(
            fusion.linear(transform, "dense", None, where),
            fusion.norm(transform, "LayerNorm", None, where),
            fusion.linear(predictions, "decoder", None, "cls.predictions."),
            fusion.activation(transform.transform_act_fn, f"{where}transform_act_fn"),
        )

    def _check(self, name: str, module: nn.Module) -> None:
        super()._check(name, module)
        self._masked_lm()

    def _wants_scores(self, given: dict[str, Any], learns: bool) -> bool:
        wanted = given.get("output_logits", not (learns and self.training))
        if wanted not in (True, False) and not (wanted == "labelled" and learns):
            expected = 'True or False, or "labelled" where there are labels'
            raise ArgumentError("output_logits", expected, repr(wanted))
        return wanted is True

    def _logits(
        self,
        encoded: Encoded,
        scores: Tensor | None,
        labels: Tensor | None,
        given: dict[str, Any],
    ) -> Tensor | None:
        """What the output holds: scores of every token, of those with labels [T], or None."""
        if scores is not None:
            return unpack(scores, encoded.batch)
        if given.get("output_logits") != "labelled":
            return None
        with torch.no_grad():
            rows, _ = heads.labelled(encoded.rows, labels)
            return heads.masked_lm_scores(self._masked_lm(), rows)

    def _masked_lm_loss(
        self, encoded: Encoded, scores: Tensor | None, given: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """(the loss, the labels [T])."""
        batch, vocab_size = encoded.batch, self.cls.predictions.decoder.out_features
        shape = (batch.batch, batch.length)
        labels = class_labels("labels", given["labels"], shape, vocab_size, encoded.rows.device)
        labels, count = take(labels, batch), _items(given, encoded.rows)
        if scores is not None:
            return heads.cross_entropy(*heads.labelled(scores, labels), count), labels
        return heads.masked_lm_loss(self._masked_lm(), encoded.rows, labels, count), labels


class BertForMaskedLM(MaskedLMHead, modeling_bert.BertForMaskedLM):
    """BERT with the head that tells the words behind [MASK]."""

    _theirs = modeling_bert.BertForMaskedLM

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        learns, loss, labels = "labels" in given, None, None
        wanted = self._wants_scores(given, learns)
        scores = heads.masked_lm_scores(self._masked_lm(), encoded.rows) if wanted else None
        if learns:
            loss, labels = self._masked_lm_loss(encoded, scores, given)
        logits = self._logits(encoded, scores, labels, given)
        return self._finish(outputs.MaskedLMOutput, encoded, given, loss=loss, logits=logits)


class BertForPreTraining(MaskedLMHead, modeling_bert.BertForPreTraining):
    """BERT with both heads of its pretraining: words behind [MASK], and whether one sentence follows the other.

    num_sequences_in_batch: the next_sentence_labels of the whole batch that this call has a part of, as
    num_items_in_batch is its labels; if absent, this part's mean weighs as its share of the labels.
    """

    _theirs = modeling_bert.BertForPreTraining

    def _encode(self, given: dict[str, Any]) -> Encoded | str:
        rows = "labels" in given or self._wants_scores(given, False)
        return encode(self.bert, given, not rows)

    def _answer(self, encoded: Encoded, given: dict[str, Any]) -> Any:
        learns, loss = "labels" in given and "next_sentence_label" in given, None
        labels = None
        wanted = self._wants_scores(given, learns)
        scores = heads.masked_lm_scores(self._masked_lm(), encoded.rows) if wanted else None
        related = self._linear(self.cls, "seq_relationship", encoded.pooled)  # [B,2]
        if learns:
            loss, labels = self._masked_lm_loss(encoded, scores, given)
            loss = loss + self._pairs_loss(related, labels, given)
        return self._finish(
            modeling_bert.BertForPreTrainingOutput,
            encoded,
            given,
            loss=loss,
            prediction_logits=self._logits(encoded, scores, labels, given),
            seq_relationship_logits=related,
        )

    def _pairs_loss(self, related: Tensor, labels: Tensor, given: dict[str, Any]) -> Tensor:
        count = _items(given, related)
        pairs = items(given.get("num_sequences_in_batch"), related.device, "num_sequences_in_batch")
        name, rows = "next_sentence_label", related.shape[:1]
        follows = class_labels(name, given[name], rows, 2, related.device)
        loss = heads.cross_entropy(related, follows, pairs)
        if pairs is None and count is not None:
            loss = loss * (labels != heads.IGNORED).sum() / count
        return loss


def _items(given: dict[str, Any], like: Tensor) -> heads.Items:
    return items(given.get("num_items_in_batch"), like.device)


def _labelled(given: dict[str, Any]) -> bool:
    return any(name in given for name in LABELS)


def _padded(scores: Tensor, encoded: Encoded, value: float) -> Tensor:
    """Scores [B,S,·] with the value at padding, where they were computed there too."""
    if encoded.real is None:
        return scores
    return scores.masked_fill(encoded.real[..., None] == 0, value)


def _drop(
    module: nn.Module, rows: Tensor, cu_seqlens: Tensor, example_ids: Tensor | None
) -> Tensor:
    """Dropout of rows with the bits of the fused operations; an observed or replaced module is called."""
    if type(module) is not nn.Dropout or fusion.reason_of(module, "dropout"):
        return module(rows)
    if module.p == 0 or not module.training:
        return rows
    return dropout(rows, module.p, draw_seed(rows.device), cu_seqlens, example_ids)
