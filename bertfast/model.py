"""BERT's encoder over one stream of real tokens: what Hugging Face's `BertModel` gives, padding never computed.

B sequences of up to S columns, T real tokens in all; H hidden, h heads of size d, F intermediate features. `BertLayer`
and `BertEmbeddings` run fused operations while nothing hooks or replaces a module inside them (`parts/plain.py`).
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import dispatch, ops
from .config import BertConfig
from .errors import UnsupportedError
from .ops._checks import check_indices
from .outputs import BaseModelOutputWithPooling
from .packing import Packed, first_rows, unpack
from .parts.dropout import drop, drops, p_and_seed
from .parts.finite import check_output
from .parts.frozen import PackedWeights
from .parts.inputs import Limits, Stream, make_stream, refuse_unknown
from .parts.layer import BertLayer, Dense
from .parts.plain import fused_parts, parameters, parts, watched
from .parts.pretrained import PretrainedModel


class Encoded(NamedTuple):
    """What the encoder made of a batch, still packed.

    Fields:
        x: [T,H], the last layer's output; [sequences,H] of first tokens only, where no more was asked for.
        pooled: [sequences,H], or None without a pooler.
        hidden_states, attentions: as `BertModel.forward` returns them, or None.
        packed: where the rows of x lie in the batch.
        packed_call: the caller packed the tokens, so the batch is one row [1,total].
        return_dict, check_finite: what was asked for, the defaults filled in.
    """

    x: Tensor
    pooled: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    packed: Packed
    packed_call: bool
    return_dict: bool
    check_finite: bool


class BertModel(PackedWeights, PretrainedModel):
    """BERT's encoder, with Hugging Face's parameters, `state_dict`, arguments and outputs.

    Args:
        config: a `BertConfig`.
        add_pooling_layer: whether the model has `pooler`.
        check_finite: what `forward` takes for `check_finite` when it is not told.
        batch_invariant: keep each operation to one form whatever the batch's size, as `dispatch.fixed_order` does,
            instead of the form that was measured to be the fastest for that size. On the CPU a row's bits are then
            the same in every batch.

    Raises:
        ConfigError: the configuration is impossible, or asks for a decoder, cross-attention or relative positions.
    """

    def __init__(
        self,
        config: BertConfig,
        add_pooling_layer: bool = True,
        check_finite: bool = False,
        batch_invariant: bool = False,
    ):
        super().__init__(config)
        self.check_finite = check_finite
        self.batch_invariant = batch_invariant
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.apply(self._init_weights)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_k: int | None = None,
        check_finite: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """Encode a batch: padded [B,S], or packed [1,total] with `cu_seq_lens_q`.

        Args:
            input_ids: [B,S] int64 or int32; or `inputs_embeds` [B,S,H] in the model's dtype. B may be 0, S may not.
            attention_mask: [B,S] bool, integer or float, nonzero at real tokens, anywhere in the row; or 4-D
                [B, 1|h, S|1, S], bool (True = may look) or additive float: then nothing is padding, and attention
                writes its matrices out.
            token_type_ids, position_ids: [B,S] or [1,S]; 0 and the column if absent (packed: restarting at 0).
            output_hidden_states: also the embeddings' and every layer's output.
            output_attentions: also every layer's probabilities [B,h,S,S], zeros where padding is involved.
            return_dict: False gives a tuple. These three default to the configuration's value.
            cu_seq_lens_q, max_length_q: int32 [sequences+1], where each sequence starts, and the longest length.
            check_finite: raise, naming the first layer, if an output is not finite.
            kwargs: other arguments of transformers' model, if they are None or False.

        Returns:
            last_hidden_state [B,S,H], zeros at padding; pooler_output [B,H] of each sequence's first real token, one
            row a sequence, zeros for a row that is all padding.

        Raises:
            ArgumentError: an argument is wrong (ids, positions and segments out of range: on the CPU).
            UnsupportedError: an argument that only a decoder knows.
        """
        encoded = self.forward_packed(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(output_hidden_states, output_attentions, return_dict),
            *(cu_seq_lens_q, max_length_q, cu_seq_lens_k, max_length_k, check_finite),
            **kwargs,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=unpack(encoded.x, encoded.packed),
            pooler_output=encoded.pooled,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if encoded.return_dict else output.to_tuple()

    def forward_packed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_k: int | None = None,
        check_finite: bool | None = None,
        first_only: bool = False,
        **kwargs,
    ) -> Encoded:
        """`forward` without unpacking; `first_only`: the caller needs the first token of each sequence, no other."""
        refuse_unknown(kwargs)
        config = self.config
        keep_hidden = _default(output_hidden_states, config.output_hidden_states)
        keep_attentions = _default(output_attentions, config.output_attentions)
        check = _default(check_finite, self.check_finite)
        stream = make_stream(
            Limits.of(self.embeddings, config.num_attention_heads),
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(cu_seq_lens_q, max_length_q, cu_seq_lens_k, max_length_k),
        )
        packed = stream.packed
        first_only = first_only and not (keep_hidden or keep_attentions or stream.mask is not None)
        with self._weights_in_use(), self._one_form():
            x, hidden, attentions = self.run(
                stream, keep_hidden, keep_attentions, check, first_only
            )
            pooled = None if self.pooler is None else self.pooler(x, packed, first_only)
        return Encoded(
            *(x, pooled),
            tuple(unpack(h, packed) for h in hidden) if keep_hidden else None,
            tuple(attentions) if keep_attentions else None,
            *(packed, stream.packed_call, _default(return_dict, config.return_dict), check),
        )

    def run(
        self,
        stream: Stream,
        keep_hidden: bool = False,
        keep_attentions: bool = False,
        check: bool = False,
        first_only: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The packed stream through embeddings and layers: [T,H], all [T,H] if kept, all [B,h,S,S] if kept."""
        if keep_attentions and stream.packed_call:
            raise UnsupportedError(
                "output_attentions=True needs a padded batch: give input_ids and attention_mask."
            )
        dense = (stream.packed, stream.mask) if keep_attentions or stream.mask is not None else None
        x = self.embeddings(stream)
        if check:
            check_output("embeddings", self.embeddings, x)
        return self.encoder(x, stream.packed, dense, keep_hidden, check, first_only)

    def _one_form(self) -> contextlib.AbstractContextManager:
        if self.batch_invariant and not torch.compiler.is_compiling():
            return dispatch.fixed_order()
        return contextlib.nullcontext()

    def freezable_linears(self):
        fused = (
            self.config.hidden_act == "gelu"
        )  # else torch reads the weight before its activation
        for name, module in self.encoder.named_modules(prefix="encoder"):
            if type(module) is nn.Linear and (fused or not name.endswith("intermediate.dense")):
                yield name, module


def _default(given: bool | None, default: bool) -> bool:
    return default if given is None else given


class BertEmbeddings(nn.Module):
    """dropout(LN(word + position + segment)): the first [T,H]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.reason: str | None = None  # why the last call went module by module

    def forward(self, stream: Stream) -> Tensor:
        found = fused_parts(self, EMBEDDING_PARTS, "embeddings")
        if found is None:
            return self._forward_modules(stream)
        word, position, segment, norm, dropout = found
        return ops.embedding(
            stream.input_ids,
            word.weight if stream.inputs_embeds is None else None,
            stream.inputs_embeds,
            *(stream.position_ids, position.weight),
            *(stream.token_type_ids, segment.weight),
            *parameters(norm),
            eps=norm.eps,
            padding_idx=-1 if word.padding_idx is None else word.padding_idx,
            cu_seqlens=stream.packed.cu_seqlens,
            **p_and_seed(dropout, stream.position_ids.device),
        )

    def _forward_modules(self, stream: Stream) -> Tensor:
        tables = {
            "input_ids": self.word_embeddings,
            "position_ids": self.position_embeddings,
            "token_type_ids": self.token_type_embeddings,
        }
        rows = stream.inputs_embeds
        for name, table in tables.items():
            ids, count = getattr(stream, name), getattr(table, "num_embeddings", None)
            if ids is not None and count is not None and not torch.compiler.is_compiling():
                check_indices(name, ids, ids.shape[0], count, ids.device)
        x = self.word_embeddings(stream.input_ids) if rows is None else rows
        x = x + self.token_type_embeddings(stream.token_type_ids)
        x = x + self.position_embeddings(stream.position_ids)
        return drop(self.dropout, self.LayerNorm(x), stream.packed.cu_seqlens)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        state_dict.pop(prefix + "position_ids", None)  # a buffer that older transformers saved
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class BertEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: BertConfig):
        super().__init__()
        layers = (BertLayer(config, index) for index in range(config.num_hidden_layers))
        self.layer = nn.ModuleList(layers)
        self.checkpointing: dict | None = None  # arguments of torch.utils.checkpoint.checkpoint

    def forward(
        self,
        x: Tensor,
        packed: Packed,
        dense: Dense | None = None,
        keep_hidden: bool = False,
        check: bool = False,
        first_only: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        hidden, attentions = [x] if keep_hidden else [], []
        short = False  # whether x holds first tokens only
        for layer in self.layer:
            short = first_only and layer is self.layer[-1] and not watched(layer)
            x = self._call(layer, x, packed.cu_seqlens, packed.max_seqlen, dense, short)  # [T,H]
            if dense is not None:
                x, probabilities = x
                attentions.append(probabilities)
            if check:
                check_output(layer.name, layer, x)
            if keep_hidden:
                hidden.append(x)
        if first_only and not short:
            x = first_rows(x, packed.cu_seqlens)
        return x, hidden, attentions

    def _call(self, layer: nn.Module, *args):
        if self.checkpointing is None or not (self.training and torch.is_grad_enabled()):
            return layer(*args)
        if torch.compiler.is_compiling() and drops(layer):  # the second time it would draw anew
            raise UnsupportedError(
                "gradient checkpointing with dropout cannot be compiled: call the model uncompiled, "
                "or set dropout to 0."
            )
        return checkpoint(layer, *args, **self.checkpointing)


class BertPooler(nn.Module):
    """tanh(x·Wᵀ + b) of each sequence's first real token: [T,H] -> [B,H], zeros for a sequence without tokens."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, packed: Packed, first_only: bool = False) -> Tensor:
        """`first_only`: x holds the first rows already, [B,H]."""
        rows = x if first_only else first_rows(x, packed.cu_seqlens)
        pooled = torch.tanh(self.dense(rows))
        return pooled.masked_fill((packed.cu_seqlens.diff() == 0)[:, None], 0)


# The modules that fused operations stand in for.
EMBEDDING_PARTS = parts(
    {
        "word_embeddings": nn.Embedding,
        "position_embeddings": nn.Embedding,
        "token_type_embeddings": nn.Embedding,
        "LayerNorm": nn.LayerNorm,
        "dropout": nn.Dropout,
    }
)
