"""One layer of BERT's encoder: five fused operations, or its modules one by one where somebody looks at them.

Shapes: T real tokens in all; H hidden, h heads of size d, F intermediate features. The modules carry Hugging Face's
parameter names; their plain `forward` is what runs where `parts/plain.py` finds that no fused operation may.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..config import BertConfig
from ..packing import Packed, first_rows, one_row_each
from .attention_dense import attend
from .dropout import drop, p_and_seed
from .frozen import thawed
from .plain import fused_parts, note, parameters, parts

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
# Asks for attention with its matrices written out; the second is the 4-D mask, if there is one.
Dense = tuple[Packed, Tensor | None]


class BertLayer(nn.Module):
    """One layer: five operations. Always entered through `__call__`, so that hooks, FSDP and checkpointing work."""

    def __init__(self, config: BertConfig, index: int):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, config.intermediate_size)
        self.name = f"encoder.layer.{index}"
        self.reason: str | None = None  # why the last call went module by module

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dense: Dense | None = None,
        first_only: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[T,H] -> [T,H]; with the probabilities [B,h,S,S] where `dense` asks for them.

        first_only (never with `dense`): -> [sequences,H], each sequence's first row; what follows attention computes
        no other.
        """
        found = fused_parts(self, LAYER_PARTS, self.name)
        if found is None:
            result = self._forward_modules(x, cu_seqlens, max_seqlen, dense)
            return first_rows(result, cu_seqlens) if first_only else result
        _, attention, query, key, value, _, _, out, out_norm, out_drop, *rest = found
        intermediate, wide, _, narrow, norm, dropout = rest
        (wq, bq), (wk, bk), (wv, bv) = parameters(query), parameters(key), parameters(value)
        heads = attention.num_attention_heads
        qkv = ops.qkv_projection(x, wq, wk, wv, bq, bk, bv, num_heads=heads)  # [T,3,h,d]
        context, probabilities = attention.attend(qkv, cu_seqlens, max_seqlen, dense)  # [T,H]
        if first_only:
            x, context = first_rows(x, cu_seqlens), first_rows(context, cu_seqlens)
            cu_seqlens = one_row_each(cu_seqlens)
        del qkv  # and context below: peak memory is that of the widest step
        x = ops.linear_layernorm(
            *(context, *parameters(out), x, *parameters(out_norm)),
            eps=out_norm.eps,
            cu_seqlens=cu_seqlens,
            **p_and_seed(out_drop, x.device),
        )  # [T,H]
        del context
        if intermediate.intermediate_act_fn is F.gelu:
            inner = ops.linear_gelu(x, *parameters(wide))  # [T,F]
        else:
            note("linear_gelu", "torch", "hidden_act is not gelu")
            inner = intermediate.intermediate_act_fn(F.linear(x, *parameters(wide))).to(x.dtype)
        x = ops.linear_layernorm(
            *(inner, *parameters(narrow), x, *parameters(norm)),
            eps=norm.eps,
            cu_seqlens=cu_seqlens,
            **p_and_seed(dropout, x.device),
        )
        return x if dense is None else (x, probabilities)

    def _forward_modules(self, x, cu_seqlens, max_seqlen, dense):
        states, probabilities = self.attention(x, cu_seqlens, max_seqlen, dense)
        states = self.output(self.intermediate(states), states, cu_seqlens).to(x.dtype)  # autocast
        return states if dense is None else (states, probabilities)

    def state_dict(self, *args, **kwargs):
        with thawed(self):
            return super().state_dict(*args, **kwargs)


class BertSelfAttention(nn.Module):
    """softmax(q·kᵀ/√d)·v inside each sequence: [T,H] -> [T,H], and the probabilities where `dense` asks for them."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, dense: Dense | None = None
    ) -> tuple[Tensor, Tensor | None]:
        qkv = torch.stack((self.query(x), self.key(x), self.value(x)), 1)  # [T,3,H]
        qkv = qkv.unflatten(2, (self.num_attention_heads, -1))  # [T,3,h,d]
        return self.attend(qkv, cu_seqlens, max_seqlen, dense)

    def attend(
        self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dense: Dense | None
    ) -> tuple[Tensor, Tensor | None]:
        dropout = p_and_seed(self.dropout, qkv.device)
        if dense is not None:
            return attend(qkv, *dense, **dropout)  # [T,H], [B,h,S,S]
        return ops.attention(qkv, cu_seqlens, max_seqlen, **dropout), None


class BertOutput(nn.Module):
    """LN(residual + dropout(x·Wᵀ + b)), which ends both halves of a layer: [T,K] -> [T,H]."""

    def __init__(self, config: BertConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor, cu_seqlens: Tensor) -> Tensor:
        return self.LayerNorm(residual + drop(self.dropout, self.dense(x), cu_seqlens))


class BertAttention(nn.Module):
    """Self-attention and its output projection: [T,H] -> [T,H]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, dense: Dense | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, probabilities = self.self(x, cu_seqlens, max_seqlen, dense)
        return self.output(context, x, cu_seqlens), probabilities


class BertIntermediate(nn.Module):
    """act(x·Wᵀ + b): [T,H] -> [T,F]."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(x))


# The modules that fused operations stand in for.
LAYER_PARTS = parts(
    {
        "attention": BertAttention,
        "attention.self": BertSelfAttention,
        "attention.self.query": nn.Linear,
        "attention.self.key": nn.Linear,
        "attention.self.value": nn.Linear,
        "attention.self.dropout": nn.Dropout,
        "attention.output": BertOutput,
        "attention.output.dense": nn.Linear,
        "attention.output.LayerNorm": nn.LayerNorm,
        "attention.output.dropout": nn.Dropout,
        "intermediate": BertIntermediate,
        "intermediate.dense": nn.Linear,
        "output": BertOutput,
        "output.dense": nn.Linear,
        "output.LayerNorm": nn.LayerNorm,
        "output.dropout": nn.Dropout,
    }
)
