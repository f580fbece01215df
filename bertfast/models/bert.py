"""`BertModel`: transformers' class of that name with another engine."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert

from ..core.batch import PackedBatch, unpack
from ..core.encode import encode_layer
from ..core.weights import BertWeights
from ..errors import UnsupportedError
from . import fusion
from .capture import AUTO, Capturable
from .engine import TRANSFORMERS_4, arguments, change_class, encode, finish, signed_as, theirs
from .loading import CheckedLoading
from .prepack import Prepackable


class BertLayer(modeling_bert.BertLayer):
    """One layer. Entered with a packed stream where somebody works on its call (FSDP, gradient checkpointing)."""

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        batch: PackedBatch | None = None,
        seeds: tuple[Tensor | None, ...] = (None, None, None),
        first_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """transformers' forward; or, with `batch`, one layer of the core.

        Args:
            hidden_states: [B,S,H]; with `batch` the packed stream [1,T,H].
            seeds, first_only: see `core.encode.encode_layer`.

        Returns:
            as transformers; with `batch` [1,T,H], with first_only [1,sequences,H].

        Raises:
            UnsupportedError: there is a batch, and the layer holds what fused operations cannot stand in for.
        """
        if batch is None:
            return super().forward(hidden_states, *args, **kwargs)
        try:
            weights = fusion.layer_view(self)
        except fusion.Unfit as unfit:
            raise UnsupportedError(f"this layer cannot run on a packed stream: {unfit}.") from None
        return encode_layer(weights, hidden_states[0], batch, seeds, first_only)[None]


class BertModel(CheckedLoading, Prepackable, Capturable, modeling_bert.BertModel):
    """BERT's encoder: transformers' `BertModel`, whose forward computes real tokens only, in fused operations.

    graphs: "auto", "training", or False for no CUDA graphs; see `bertfast.graphs`. `from_pretrained` takes it, too.
    """

    def __init__(self, config: Any, *args: Any, graphs: str | bool = AUTO, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self.graphs = graphs
        for layer in self.encoder.layer:
            layer.__class__ = BertLayer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' forward: its arguments, its output.

        Padded positions of hidden states are zeros, and the pooler takes each sequence's first real token. Besides
        transformers' own:

        Args:
            cu_seq_lens_q, max_length_q: the batch is packed by the caller, input_ids [1,total]: int32 [sequences+1],
                where each sequence starts, and the longest length.
            example_ids: int64 [batch], or [sequences] of a packed batch: dropout counts a sequence by its id, so that
                it drops the same in any batch; without, by its index in the batch.
            check_finite: raise, naming the first layer, if an output is not finite.

        Raises:
            ArgumentError: an argument is wrong (ids, positions and segments out of range: on the CPU).
        """
        given = arguments(modeling_bert.BertModel, args, kwargs)
        encoded = encode(self, given, padding=True)
        if isinstance(encoded, str):
            return theirs(self, modeling_bert.BertModel, encoded, given)
        states = encoded.hidden_states
        last = None if states is None else states[-1]
        last = unpack(encoded.rows, encoded.batch) if last is None else last
        output = finish(
            self,
            BaseModelOutputWithPoolingAndCrossAttentions,
            given,
            last_hidden_state=last,
            pooler_output=encoded.pooled,
            hidden_states=states,
        )
        if TRANSFORMERS_4 and isinstance(output, tuple) and encoded.pooled is None:
            return (output[0], None, *output[1:])  # 4 keeps the pooler's place
        return output

    def view(self) -> BertWeights | str:
        """The weights as the core reads them now, or the reason why only transformers' own forward can run."""
        return fusion.view(self, BertLayer)


BertModel.forward = signed_as(modeling_bert.BertModel, BertModel.forward)


def switch(model: nn.Module) -> None:
    """Give a transformers `BertModel` and its layers our classes."""
    change_class(model, BertModel)
    for layer in model.encoder.layer:
        if type(layer) is modeling_bert.BertLayer:
            change_class(layer, BertLayer)
