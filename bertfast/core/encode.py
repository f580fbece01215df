"""BERT, read top-down: a packed batch in, rows out.

T real tokens in all, H hidden, h heads of size d, F intermediate features, B sequences. Devlin et al., "BERT:
Pre-training of Deep Bidirectional Transformers", 2019: embeddings, then L times attention and feed-forward network,
each added to its input and normalised. Five fused operations a layer; a module that somebody put in the place of a
weight (`weights.py`) is called instead of being fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .. import extension, ops
from ..dispatch import note
from ..ops import _philox
from ..ops._seed import draw_seed
from ..ops.encoder import encoder
from ..ops.encoder._padded import Tables, Tokens, padded_encoder
from .batch import PackedBatch, first_rows, one_row_each
from .linear import linear
from .weights import BertWeights, Call, EmbeddingWeights, LayerWeights, Linear, Norm

Observer = Callable[[int, Tensor], Tensor]
_PLAIN = (Linear, Linear, Linear, Linear, Norm, Linear, Linear, Norm)  # of a layer's fields
# Where the encoder's tensors stand in these fields, laid end to end: weights, their biases, LN (each with its eps).
_PLACES = (0, 2, 4, 6, 11, 13, 1, 3, 5, 7, 12, 14, 8, 9, 15, 16)


def encode_packed(
    weights: BertWeights,
    batch: PackedBatch,
    *,
    first_only: bool = False,
    observe: Observer | None = None,
) -> Tensor:
    """The last layer's output.

    Args:
        first_only: only each sequence's first row is wanted; what follows the last attention computes no other.
        observe: called with (0, the embeddings' output) and (i, that of layer i, from 1); what it gives goes on
            (without a gradient it has to be the same rows, as the layers may have run already).

    Returns:
        [T,H]; [B,H] with first_only, where the row of a sequence without tokens means nothing.

    Raises:
        ArgumentError: an id is out of its table (on the CPU), or tensors do not fit.
    """
    seeds = draw_seeds(weights, batch.position_ids.device)
    x = embed(weights.embeddings, batch, None if seeds is None else seeds[0, :1])  # [T,H]
    if observe is not None:
        x = observe(0, x)
    of_layers = None if seeds is None else seeds[1:]
    found = encode_layers(weights, x, batch, first_only, observe is not None, of_layers)
    if found is not None:
        out, states = found
        for index in range(0 if states is None else len(states)):
            out = observe(index + 1, states[index])
        return out
    last = len(weights.layers) - 1
    for index, layer in enumerate(weights.layers):
        short = first_only and index == last
        own = (None,) * 3 if seeds is None else seeds[index + 1].split(1)
        x = _enter(layer, x, batch, own, short)  # [T,H], or [B,H] if short
        if observe is not None:
            x = observe(index + 1, x)
    return first_rows(x, batch.cu_seqlens) if first_only and last < 0 else x


def encode_padded(
    weights: BertWeights, tokens: Tokens, first_only: bool = False
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """As `ops.encoder._padded.padded_encoder`, which tells what comes out; None: the batch is to be packed."""
    word, on_gpu = weights.embeddings.word, extension.on_gpu(weights.embeddings.position)
    if not on_gpu or weights.drops or torch.compiler.is_compiling() or not isinstance(word, Tensor):
        return None
    layers = _plain_layers(weights.layers)
    if layers is None:
        return None
    tensors, eps, alike = layers
    norm = weights.embeddings.norm
    tables = Tables(word, weights.embeddings.position, weights.embeddings.segment, *norm)
    return padded_encoder(tokens, tables, tensors, eps, num_heads=alike[0], first_only=first_only)


def encode_layers(
    weights: BertWeights,
    x: Tensor,
    batch: PackedBatch,
    first_only: bool = False,
    states: bool = False,
    seeds: Tensor | None = None,
) -> tuple[Tensor, Tensor | None] | None:
    """All layers in one native call, from the embeddings' output [T,H]; seeds [L,3] where anything drops.

    Returns: the last layer's output, as `encode_packed`, and with `states` each layer's [L,T,H], else None; None alone
    where layers have to run one by one (`ops.encoder` records why; not where something in them was replaced).
    """
    layers = _plain_layers(weights.checkpointed or weights.layers)
    if layers is None:
        return None
    tensors, eps, alike = layers
    return encoder(
        x, tensors, eps, batch.cu_seqlens, batch.max_seqlen,
        num_heads=alike[0], first_only=first_only, states=states, p=alike[2:], seeds=seeds,
        example_ids=batch.example_ids, recompute=bool(weights.checkpointed),
    )  # fmt: skip


def _plain_layers(layers: Sequence[Any]) -> tuple[list[Tensor], list[float], tuple] | None:
    """The encoder's tensors and eps, and what the layers have alike: heads, activation, dropout; None where there are
    none, something in one was replaced, or they are not alike.
    """
    if not layers or not all(map(_is_plain, layers)):
        return None
    alike = layers[0][8:]
    if any(layer[8:] != alike for layer in layers):
        return None
    flat = list(chain.from_iterable(chain.from_iterable(layer[:8] for layer in layers)))
    tensors = list(chain.from_iterable(flat[place :: len(_PLACES) + 2] for place in _PLACES))
    eps = list(chain.from_iterable(zip(flat[10::18], flat[17::18], strict=True)))
    return tensors, eps, alike


def _is_plain(layer: LayerWeights | torch.nn.Module) -> bool:
    """Whether nothing in the layer was replaced."""
    return (
        type(layer) is LayerWeights
        and tuple(map(type, layer[:8])) == _PLAIN
        and layer.activation is None
    )


def embed(weights: EmbeddingWeights, batch: PackedBatch, seed: Tensor | None) -> Tensor:
    """dropout(LN(word + position + segment)): the first [T,H]."""
    ids, word, rows = batch.input_ids, weights.word, batch.inputs_embeds
    if rows is not None:
        ids = word = None
    elif not isinstance(word, Tensor):
        ids, word, rows = None, None, called(word, ids)
    return ops.embedding(
        input_ids=ids,
        word=word,
        inputs_embeds=rows,
        position_ids=batch.position_ids,
        position=weights.position,
        token_type_ids=batch.token_type_ids,
        segment=weights.segment,
        ln_weight=weights.norm.weight,
        ln_bias=weights.norm.bias,
        eps=weights.norm.eps,
        p=weights.dropout,
        seed=seed,
        cu_seqlens=batch.cu_seqlens,
        example_ids=batch.example_ids,
        padding_idx=weights.padding_idx,
    )


def encode_layer(
    layer: LayerWeights,
    x: Tensor,
    batch: PackedBatch,
    seeds: Sequence[Tensor | None],
    first_only: bool = False,
) -> Tensor:
    """One layer: [T,H] -> [T,H]; with first_only [B,H], each sequence's first row.

    Args:
        seeds: of dropout on attention, on its output, and on the feed-forward network's output.
    """
    qkv = project_qkv(layer, x)  # [T,3,h,d]
    cu_seqlens, example_ids = batch.cu_seqlens, batch.example_ids
    context = ops.attention(
        qkv,
        cu_seqlens,
        batch.max_seqlen,
        p=layer.attention_dropout,
        seed=seeds[0],
        example_ids=example_ids,
    )  # [T,h·d]
    del qkv  # and context below: peak memory is that of the widest step
    if first_only:
        x, context = first_rows(x, cu_seqlens), first_rows(context, cu_seqlens)  # [B,H]
        cu_seqlens = one_row_each(cu_seqlens)
    x = add_and_normalise(
        layer.out, layer.out_norm, context, x, layer.out_dropout, seeds[1], cu_seqlens, example_ids
    )  # [T,H]
    del context
    inner = activate(layer.inner, layer.activation, x)  # [T,F]
    return add_and_normalise(
        layer.outer, layer.norm, inner, x, layer.dropout, seeds[2], cu_seqlens, example_ids
    )  # [T,H]


def project_qkv(layer: LayerWeights, x: Tensor) -> Tensor:
    """Query, key and value of every head: [T,H] -> [T,3,h,d]."""
    parts = (layer.query, layer.key, layer.value)
    if all(isinstance(part, Linear) for part in parts):
        (wq, bq), (wk, bk), (wv, bv) = parts
        return ops.qkv_projection(x, wq, wk, wv, bq, bk, bv, num_heads=layer.num_heads)
    qkv = torch.stack([called(part, x) for part in parts], 1)  # [T,3,h·d]
    return qkv.unflatten(2, (layer.num_heads, -1))


def activate(inner: Linear | Call, activation: Call | None, x: Tensor) -> Tensor:
    """activation(x·Wᵀ + b), gelu by erf where it is None: [T,H] -> [T,F]."""
    if activation is None and isinstance(inner, Linear):
        return ops.linear_gelu(x, inner.weight, inner.bias)
    if isinstance(inner, Linear) and not torch.compiler.is_compiling():
        note("linear_gelu", "forward", "torch", {"fused": "hidden_act is not gelu"})
    return (activation or torch.nn.functional.gelu)(called(inner, x))


def add_and_normalise(
    outer: Linear | Call,
    norm: Norm | Call,
    x: Tensor,
    residual: Tensor,
    p: float,
    seed: Tensor | None,
    cu_seqlens: Tensor,
    example_ids: Tensor | None,
) -> Tensor:
    """LN(residual + dropout(x·Wᵀ + b)), which ends both halves of a layer: [T,K] -> [T,H]."""
    if isinstance(outer, Linear) and isinstance(norm, Norm):
        return ops.linear_layernorm(
            x,
            outer.weight,
            outer.bias,
            residual,
            norm.weight,
            norm.bias,
            eps=norm.eps,
            p=p,
            seed=seed,
            cu_seqlens=cu_seqlens,
            example_ids=example_ids,
        )
    dropped = dropout(called(outer, x), p, seed, cu_seqlens, example_ids)
    return called(norm, residual + dropped)


def dropout(
    x: Tensor, p: float, seed: Tensor | None, cu_seqlens: Tensor, example_ids: Tensor | None
) -> Tensor:
    """Dropout of rows [T,H] with the bits that the fused operations draw."""
    if p == 0:
        return x
    keep = _philox.hidden_keep(seed, p, cu_seqlens, *x.shape, example_ids)
    return _philox.dropout(x, p, keep)


def draw_seeds(weights: BertWeights, device: torch.device) -> Tensor | None:
    """[L+1,3] drawn from torch's generator at once: for the embeddings (the first is used), then for each layer; None
    where nothing drops.
    """
    count = len(weights.layers) + 1
    return draw_seed(device, 3 * count).view(count, 3) if weights.drops else None


def _enter(
    layer: LayerWeights | torch.nn.Module,
    x: Tensor,
    batch: PackedBatch,
    seeds: Sequence[Tensor | None],
    first_only: bool,
) -> Tensor:
    if isinstance(layer, LayerWeights):
        return encode_layer(layer, x, batch, seeds, first_only)
    return layer(x[None], batch=batch, seeds=seeds, first_only=first_only)[0]


def called(part: Linear | Norm | Call, x: Tensor) -> Tensor:
    """What a part makes of rows [T,...]; modules get them as a batch of one row, [1,T,...]."""
    if isinstance(part, Linear):
        return linear(x, part.weight, part.bias)
    return part(x) if isinstance(part, Norm) else part(x[None])[0]
