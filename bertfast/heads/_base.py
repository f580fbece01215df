"""What all heads share: the encoder entered once, packed; classifier dropout; the output checked and named."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..config import BertConfig
from ..model import BertModel, Encoded
from ..outputs import ModelOutput
from ..packing import one_row_each, take
from ..parts.dropout import drop
from ..parts.finite import check_head
from ..parts.inputs import Limits, make_stream
from ..parts.plain import watched
from ..parts.pretrained import PretrainedModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_STARTS = ("cu_seq_lens_q", "max_length_q", "cu_seq_lens_k", "max_length_k")


class BertHead(PretrainedModel):
    """Base of the heads; a subclass makes its own modules and then calls `_start_weights()`.

    Args:
        config: a `BertConfig`.
        check_finite: what `forward` takes for `check_finite` when it is not told.
        pooler: whether the encoder has one.
    """

    def __init__(self, config: BertConfig, check_finite: bool = False, pooler: bool = True):
        super().__init__(config)
        self.bert = BertModel(self.config, pooler, check_finite)

    def _start_weights(self) -> None:
        """Start the head's own parameters; the encoder has started its."""
        for name, module in self.named_children():
            if name != "bert":
                module.apply(self._init_weights)

    def _encode(self, *inputs: Tensor | None, first_only: bool = False, **options: Any) -> Encoded:
        """The encoder on a batch.

        Args:
            inputs: input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, as `BertModel.forward`
                takes them.
            first_only: the head needs each sequence's first token, no other.
            options: the other arguments of `BertModel.forward`.
        """
        if not watched(self.bert):
            return self.bert.forward_packed(*inputs, first_only=first_only, **options)
        # Somebody looks at what `bert` itself returns.
        return_dict = options.pop("return_dict", None)
        output = self.bert(*inputs, **options, return_dict=True)
        starts = {name: options.get(name) for name in _STARTS}
        limits = Limits.of(self.bert.embeddings, self.config.num_attention_heads)
        stream = make_stream(limits, *inputs, **starts)
        check = options.get("check_finite")
        return Encoded(
            *(take(output.last_hidden_state, stream.packed), output.pooler_output),
            *(output.hidden_states, output.attentions, stream.packed, stream.packed_call),
            self.config.return_dict if return_dict is None else return_dict,
            self.bert.check_finite if check is None else check,
        )

    def _finish(self, kind: type[ModelOutput], encoded: Encoded, **fields: Tensor | None):
        """The output, or its tuple; with check_finite, an error that names what is not finite."""
        if encoded.check_finite:
            check_head(self, fields)
        output = kind(**fields, hidden_states=encoded.hidden_states, attentions=encoded.attentions)
        return output if encoded.return_dict else output.to_tuple()

    def freeze(self):
        """Keep only the packed form of the encoder's weights: see `BertModel.freeze`."""
        self.eval()
        self.bert.freeze()
        return self

    def unfreeze(self):
        """Bring back plain weights, exactly as they were."""
        self.bert.unfreeze()
        return self

    @property
    def frozen(self) -> bool:
        """Whether `freeze()` is in force."""
        return self.bert.frozen


def classifier_dropout(config: BertConfig) -> nn.Dropout:
    """The dropout before a classifier."""
    p = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if p is None else p)


def drop_pooled(dropout: nn.Module, encoded: Encoded) -> Tensor:
    """Dropout of the pooled rows."""
    return drop(dropout, encoded.pooled, one_row_each(encoded.packed.cu_seqlens))


def token_shape(encoded: Encoded) -> tuple[int, int]:
    """[B,S] of the batch, [1,total] of a packed call."""
    return encoded.packed.batch, encoded.packed.length
