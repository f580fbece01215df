"""Which columns stay in float when an encoder's products become int8, found by running it on tokens of its own.

A few columns of the hidden states are far larger than all others, in every text and in the same places; where they are
is told by a forward of random tokens as well as by one of real texts.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from .. import ops
from ..errors import UnsupportedError
from ..ops._quantized import Columns, QuantizedParameter, quantized, refusal, round_weight
from .batch import PackedBatch, pack_rows
from .encode import activate, add_and_normalise, embed, project_qkv
from .weights import BertWeights, LayerWeights, Linear

OUTLIERS = 8  # columns of each product's input
GROUP = 64  # columns of x with a scale of their own
_SEQUENCES, _LENGTH = 16, 32  # of the forward
_PRODUCTS = (("query", "key", "value"), ("out",), ("inner",), ("outer",))  # each reads one x

Found = dict[str, QuantizedParameter]  # by the field of LayerWeights


def quantized_view(weights: BertWeights) -> BertWeights:
    """The same encoder with its layers' products in int8; see `quantize_layers`."""
    layers = []
    for layer, found in zip(weights.layers, quantize_layers(weights), strict=True):
        parts = {
            name: getattr(layer, name)._replace(weight=weight) for name, weight in found.items()
        }
        layers.append(layer._replace(**parts))
    return weights._replace(layers=layers)


@torch.no_grad()
def quantize_layers(weights: BertWeights) -> list[Found]:
    """The products of each layer in int8; not one whose activation torch computes.

    Args:
        weights: an encoder in fp32, bf16 or fp16 on a CPU, in eval mode.

    Raises:
        UnsupportedError: a weight cannot be quantized, or another module stands in its place.
    """
    for index, layer in enumerate(weights.layers):
        _check(layer, index)
    batch = _own_tokens(weights)
    x = embed(weights.embeddings, batch, None)
    found = []
    for layer in weights.layers:
        inputs = _inputs(layer, x, batch)
        x = inputs.pop()
        found.append(_quantize_layer(layer, inputs))
    return found


def _check(layer: LayerWeights, index: int) -> None:
    """Raise UnsupportedError for a layer that has more than plain weights, or weights of which no int8 is made."""
    for name in chain.from_iterable(_PRODUCTS):
        part = getattr(layer, name, None)
        if not isinstance(part, Linear):
            raise UnsupportedError(
                f"quantize: {name} of layer {index} is a {type(part).__name__}, int8 is made of a plain Linear's "
                "weights. Merge an adapter, or undo what replaced it, first."
            )
        if reason := refusal(part.weight):
            raise UnsupportedError(f"quantize: {name} of layer {index}: {reason}.")


def _own_tokens(weights: BertWeights) -> PackedBatch:
    """Rows of random tokens of the vocabulary, the same ones at every call."""
    words, generator = weights.embeddings.word.shape[0], torch.Generator().manual_seed(0)
    length = min(_LENGTH, weights.max_positions)
    rows = torch.randint(words, (_SEQUENCES, length), generator=generator)
    return pack_rows(rows.tolist(), weights.device)


def _inputs(layer: LayerWeights, x: Tensor, batch: PackedBatch) -> list[Tensor]:
    """What the products of a layer read, as in `_PRODUCTS`, and its output."""
    starts = batch.cu_seqlens
    context = ops.attention(project_qkv(layer, x), starts, batch.max_seqlen, p=0.0, seed=None)
    y = add_and_normalise(layer.out, layer.out_norm, context, x, 0.0, None, starts, None)
    inner = activate(layer.inner, layer.activation, y)
    out = add_and_normalise(layer.outer, layer.norm, inner, y, 0.0, None, starts, None)
    return [x, context, y, inner, out]


def _quantize_layer(layer: LayerWeights, inputs: list[Tensor]) -> Found:
    found = {}
    for names, x in zip(_PRODUCTS, inputs, strict=True):
        columns = _columns(x)
        for name in names:
            weight = getattr(layer, name).weight
            if name != "inner" or layer.activation is None:
                found[name] = quantized(round_weight(weight, columns), weight.dtype)
    return found


def _columns(x: Tensor) -> Columns:
    """The columns of x [T,K] with the largest values."""
    largest = x.float().abs().amax(0)
    count = min(OUTLIERS, len(largest) // 16)
    outliers = largest.topk(count).indices.sort().values.int()
    return Columns(outliers, GROUP)
