"""The heads that BERT is pretrained with: words behind [MASK], and whether one sentence follows the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..config import BertConfig
from ..model import Encoded
from ..outputs import BertForPreTrainingOutput, MaskedLMOutput, NextSentencePredictorOutput
from ..packing import take, unpack
from ..parts.layer import ACTIVATIONS
from ..parts.plain import fused_parts, note, parameters, parts, watched
from ._base import BertHead, token_shape
from ._losses import IGNORED, Items, class_labels, cross_entropy, divided, items, labelled


class MaskedLMHead(BertHead):
    """What `BertForMaskedLM` and `BertForPreTraining` share: `cls.predictions`, tied to the word embeddings.

    cls.predictions.decoder.bias is cls.predictions.bias; decoder.weight is the word embeddings' where
    config.tie_word_embeddings is set. They stay so through `.to()`, copies, loading and resizing.
    """

    def tie_weights(self) -> None:
        """Make the decoder's parameters those that they are tied to."""
        words, decoder = self.get_input_embeddings(), self.cls.predictions.decoder
        if type(decoder) is not nn.Linear or not isinstance(words, nn.Embedding):
            return  # somebody's own module
        decoder.bias = self.cls.predictions.bias
        if self.config.tie_word_embeddings:
            decoder.weight = words.weight

    def _start_weights(self) -> None:
        super()._start_weights()
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Put another decoder in its place; its bias becomes cls.predictions.bias."""
        self.cls.predictions.decoder = value
        self.cls.predictions.bias = value.bias

    def set_input_embeddings(self, value: nn.Module) -> None:
        super().set_input_embeddings(value)
        self.tie_weights()

    def load_state_dict(self, *args: Any, **kwargs: Any):
        result = super().load_state_dict(*args, **kwargs)
        self.tie_weights()  # assign=True gave every name a parameter of its own
        return result

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.tie_weights()  # so did a move off the meta device
        return self

    @classmethod
    def _prepare_weights(cls, weights: dict[str, Tensor]) -> None:
        """Of two biases the decoder's counts: transformers 5 leaves the other unused where they are not tied."""
        bias = weights.pop("cls.predictions.decoder.bias", None)
        if bias is not None:
            weights["cls.predictions.bias"] = bias

    def _token_labels(self, encoded: Encoded, labels: Tensor) -> Tensor:
        """Words' ids [B,S] as those of the stream [T]."""
        shape, words = token_shape(encoded), self.cls.predictions.decoder.out_features
        return take(class_labels("labels", labels, shape, words, encoded.x.device), encoded.packed)

    def _must_score(self, wanted: bool) -> bool:
        """Whether scores are made: where they are wanted, or where somebody looks at the modules that make them."""
        return wanted or watched(self.cls) or watched(self.cls.predictions)

    def _words_loss(
        self, x: Tensor, scores: Tensor | None, labels: Tensor, num_items: Items
    ) -> Tensor:
        """The loss on the labels [T] of the stream x [T,H], from its scores [T,V] where there are any."""
        if scores is not None:
            return cross_entropy(*labelled(scores, labels), num_items)
        return self.cls.predictions.loss(*labelled(x, labels), num_items)


class BertForMaskedLM(MaskedLMHead):
    """BERT with the head that tells the words behind [MASK].

    Args:
        config: a `BertConfig`.
        check_finite: what `forward` takes for `check_finite` when it is not told.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False):
        super().__init__(config, check_finite, pooler=False)
        self.cls = BertOnlyMLMHead(self.config)
        self._start_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        output_logits: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> MaskedLMOutput | tuple:
        """Scores of every word at every token; or, with labels, the loss, which computes labelled tokens alone.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options: see `BertModel.forward`.
            labels: [B,S], ids of words, -100 for none; those at padding do not count.
            output_logits: make the logits or not; default: only without labels (transformers: always).
            num_items_in_batch: divide the sum of the losses by this, instead of by the number of labels.

        Raises:
            ArgumentError: an argument is wrong (labels out of range: on the CPU).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded, loss = self._encode(*inputs, **options), None
        wanted = labels is None if output_logits is None else output_logits
        with self.bert._weights_in_use():
            scores = self.cls(encoded.x) if self._must_score(wanted) else None  # [T,V]
            if labels is not None:
                count = items(num_items_in_batch, encoded.x.device)
                targets = self._token_labels(encoded, labels)
                loss = self._words_loss(encoded.x, scores, targets, count)
        logits = unpack(scores, encoded.packed) if wanted else None
        return self._finish(MaskedLMOutput, encoded, loss=loss, logits=logits)


class BertForPreTraining(MaskedLMHead):
    """BERT with both heads of its pretraining: words behind [MASK], and whether one sentence follows the other.

    Args:
        config: a `BertConfig`.
        check_finite: what `forward` takes for `check_finite` when it is not told.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False):
        super().__init__(config, check_finite)
        self.cls = BertPreTrainingHeads(self.config)
        self._start_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_logits: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        num_sequences_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> BertForPreTrainingOutput | tuple:
        """Scores of words and of the second sentence; with both labels, the sum of the two losses.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options: see `BertModel.forward`.
            labels: [B,S], ids of words, -100 for none; those at padding do not count.
            next_sentence_label: [B]; 0: the second sentence follows the first, 1: it does not.
            output_logits: make the prediction_logits or not; default: only where no loss is made.
            num_items_in_batch: the number of labels of the whole batch that this call has a part of.
            num_sequences_in_batch: its number of next_sentence_labels; if absent, this part's mean weighs as its
                share of the labels.

        Raises:
            ArgumentError: an argument is wrong (labels out of range: on the CPU).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        learns = labels is not None and next_sentence_label is not None
        wanted = not learns if output_logits is None else output_logits
        score = self._must_score(wanted)
        encoded, loss = self._encode(*inputs, first_only=not (learns or score), **options), None
        with self.bert._weights_in_use():
            if score:
                scores, related = self.cls(encoded.x, encoded.pooled)  # [T,V], [B,2]
            else:
                scores, related = None, self.cls.seq_relationship(encoded.pooled)
            if learns:
                device = encoded.x.device
                count = items(num_items_in_batch, device)
                pairs = items(num_sequences_in_batch, device, "num_sequences_in_batch")
                targets = self._token_labels(encoded, labels)
                follows = next_labels("next_sentence_label", next_sentence_label, related)
                loss = cross_entropy(related, follows, pairs)
                if pairs is None and count is not None:
                    loss = loss * (targets != IGNORED).sum() / count
                loss = loss + self._words_loss(encoded.x, scores, targets, count)
        return self._finish(
            *(BertForPreTrainingOutput, encoded),
            loss=loss,
            prediction_logits=unpack(scores, encoded.packed) if wanted else None,
            seq_relationship_logits=related,
        )


class BertForNextSentencePrediction(BertHead):
    """BERT with the head that tells whether the second sentence follows the first.

    Args:
        config: a `BertConfig`.
        check_finite: what `forward` takes for `check_finite` when it is not told.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False):
        super().__init__(config, check_finite)
        self.cls = BertOnlyNSPHead(self.config)
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
    ) -> NextSentencePredictorOutput | tuple:
        """Scores [B,2] of "follows" and "does not", and with labels the loss.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options: see `BertModel.forward`.
            labels: [B]; 0: the second sentence follows the first, 1: it does not.
            num_items_in_batch: divide the sum of the losses by this, instead of by the number of labels.

        Raises:
            ArgumentError: an argument is wrong (labels out of range: on the CPU).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded, loss = self._encode(*inputs, first_only=True, **options), None
        logits = self.cls(encoded.pooled)
        if labels is not None:
            count = items(num_items_in_batch, logits.device)
            loss = cross_entropy(logits, next_labels("labels", labels, logits), count)
        return self._finish(NextSentencePredictorOutput, encoded, loss=loss, logits=logits)


def next_labels(name: str, labels: Tensor, logits: Tensor) -> Tensor:
    """Labels [B] for logits [B,2]."""
    return class_labels(name, labels, (logits.shape[0],), 2, logits.device)


class BertOnlyMLMHead(nn.Module):
    """`cls` of `BertForMaskedLM`: [N,H] -> [N,V]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.predictions = BertLMPredictionHead(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictions(x)


class BertPreTrainingHeads(nn.Module):
    """`cls` of `BertForPreTraining`: [N,H] and pooled [B,H] -> [N,V] and [B,2]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictions(x), self.seq_relationship(pooled)


class BertOnlyNSPHead(nn.Module):
    """`cls` of `BertForNextSentencePrediction`: pooled [B,H] -> [B,2]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.seq_relationship(pooled)


class BertLMPredictionHead(nn.Module):
    """Scores of every word: [N,H] -> [N,V]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.reason: str | None = None  # why the last loss was computed from scores

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))

    def loss(self, x: Tensor, labels: Tensor, num_items: Items) -> Tensor:
        """Mean of -log softmax(scores)[label], or its sum / num_items; the scores [N,V] are never whole in memory."""
        x = self.transform(x)
        found = fused_parts(self, DECODER_PARTS, "cls.predictions")
        if found is None:
            return cross_entropy(self.decoder(x), labels, num_items)
        count = None if num_items is None else 1
        total = ops.masked_cross_entropy(x, *parameters(found[0]), labels, num_items=count)
        return divided(total, num_items)


class BertPredictionHeadTransform(nn.Module):
    """LN(act(x·Wᵀ + b)): [N,H] -> [N,H]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = ACTIVATIONS[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reason: str | None = None  # why the last call went module by module

    def forward(self, x: Tensor) -> Tensor:
        found = fused_parts(self, TRANSFORM_PARTS, "cls.predictions.transform")
        if found is not None and self.transform_act_fn is F.gelu:
            dense, norm = found
            return ops.gelu_layernorm(x, *parameters(dense), *parameters(norm), eps=norm.eps)
        if found is not None:
            note("gelu_layernorm", "torch", "hidden_act is not gelu")
        return self.LayerNorm(self.transform_act_fn(self.dense(x))).to(x.dtype)  # autocast


# The modules that fused operations stand in for.
DECODER_PARTS = parts({"decoder": nn.Linear})
TRANSFORM_PARTS = parts({"dense": nn.Linear, "LayerNorm": nn.LayerNorm})
