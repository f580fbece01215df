"""Views of BERT's weights: what the encoder reads, whoever owns the tensors (modules, or a checkpoint's dict).

H hidden, F intermediate features, N = heads · d features of attention (H unless heads were pruned). Where a `Linear`
or `Norm` stands, its tensors enter fused operations; any other callable in that place (a LoRA or quantized layer) is
called on rows [1,T,·] instead, which costs the fusion of that operation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import extension
from ..ops._weights import prepack

Call = Callable[[Tensor], Tensor]


class Linear(NamedTuple):
    """x · weightᵀ + bias; weight [N,K], bias [N]."""

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """LN over the last dimension; weight, bias [H]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class EmbeddingWeights(NamedTuple):
    """dropout(norm(word[id] + position[p] + segment[s])); tables [rows,H].

    `word` may be a callable from ids [1,T] to rows [1,T,H]. padding_idx: the row that gets gradient 0, -1 for none.
    """

    word: Tensor | Call
    position: Tensor
    segment: Tensor
    norm: Norm
    dropout: float = 0.0
    padding_idx: int = -1


class LayerWeights(NamedTuple):
    """One layer. Dropout probabilities are those in force now (0 in eval mode).

    Fields:
        query, key, value: [N,H]; out: [H,N], ended by out_norm.
        inner: [F,H], followed by `activation` (None: gelu by erf); outer: [H,F], ended by norm.
    """

    query: Linear | Call
    key: Linear | Call
    value: Linear | Call
    out: Linear | Call
    out_norm: Norm | Call
    inner: Linear | Call
    outer: Linear | Call
    norm: Norm | Call
    num_heads: int
    activation: Call | None = None
    attention_dropout: float = 0.0
    out_dropout: float = 0.0
    dropout: float = 0.0


class BertWeights(NamedTuple):
    """The whole encoder.

    Fields:
        layers: views; or modules to be entered by their own call, which take (x [1,T,H], batch=, seeds=, first_only=)
            and give [1,T,H]: for FSDP and gradient checkpointing, which work on a layer's call.
        pooler: of each sequence's first row: a Linear, which tanh follows, or what gives pooled rows from [B,1,H]; None
            without one.
        drops: whether any dropout is in force.
        checkpointed: views of all layers, where these are modules for gradient checkpointing alone: one call for all
            layers can do that too.
    """

    embeddings: EmbeddingWeights
    layers: Sequence[LayerWeights | torch.nn.Module]
    pooler: Linear | Call | None = None
    drops: bool = False
    checkpointed: Sequence[LayerWeights] = ()

    @property
    def device(self) -> torch.device:
        return self.embeddings.position.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.position.dtype

    @property
    def hidden_size(self) -> int:
        return self.embeddings.position.shape[1]

    @property
    def max_positions(self) -> int:
        return self.embeddings.position.shape[0]


def prepack_layers(layers: list[LayerWeights]) -> None:
    """Replace the weights of the layers' products by the C++ kernels' layout of them, where these serve them.

    For an owner of the weights that writes to none of them.
    """
    for index, layer in enumerate(layers):
        fused = ["query", "key", "value", "out", "outer"] + ["inner"] * (layer.activation is None)
        parts = {name: getattr(layer, name) for name in fused}
        layers[index] = layer._replace(
            **{
                name: part._replace(weight=prepack(part.weight))
                for name, part in parts.items()
                if isinstance(part, Linear) and extension.refuses(part.weight) is None
            }
        )


class MaskedLMWeights(NamedTuple):
    """The masked-LM head: norm(activation(transform)), then the decoder [V,H], whose weight is the word table's."""

    transform: Linear | Call
    norm: Norm | Call
    decoder: Linear | Call
    activation: Call | None = None


ACTIVATIONS: dict[str, Call | None] = {  # None: the fused gelu by erf
    "gelu": None,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def bert_weights(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> BertWeights:
    """A view of a checkpoint's tensors by Hugging Face's names (without ``bert.``), in eval mode.

    Args:
        tensors: name -> tensor, all of one dtype and device.
        config: what config.json says; num_hidden_layers, num_attention_heads, hidden_act and layer_norm_eps are read.

    Raises:
        KeyError: a tensor is missing.
    """
    heads = int(config["num_attention_heads"])
    linear, norm = partial(_linear, tensors), partial(_norm, tensors, config)

    def layer(name: str) -> LayerWeights:
        return LayerWeights(
            *(linear(f"{name}.attention.self.{part}") for part in ("query", "key", "value")),
            linear(f"{name}.attention.output.dense"),
            norm(f"{name}.attention.output.LayerNorm"),
            linear(f"{name}.intermediate.dense"),
            linear(f"{name}.output.dense"),
            norm(f"{name}.output.LayerNorm"),
            heads,
            ACTIVATIONS[config["hidden_act"]],
        )

    tables = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
    return BertWeights(
        EmbeddingWeights(*(tensors[name] for name in tables), norm("embeddings.LayerNorm")),
        [layer(f"encoder.layer.{index}") for index in range(int(config["num_hidden_layers"]))],
        linear("pooler.dense") if "pooler.dense.weight" in tensors else None,
    )


def _linear(tensors: Mapping[str, Tensor], name: str) -> Linear:
    return Linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _norm(tensors: Mapping[str, Tensor], config: Mapping[str, object], name: str) -> Norm:
    return Norm(*_linear(tensors, name), float(config["layer_norm_eps"]))


def masked_lm_weights(
    tensors: Mapping[str, Tensor], config: Mapping[str, object]
) -> MaskedLMWeights:
    """A view of a masked-LM head by Hugging Face's names; a decoder that is absent is tied to the word table.

    Raises:
        KeyError: a tensor is missing.
    """
    head, word_embeddings = "cls.predictions", tensors["embeddings.word_embeddings.weight"]
    own = f"{head}.decoder.bias"  # of two the decoder's counts
    return MaskedLMWeights(
        _linear(tensors, f"{head}.transform.dense"),
        _norm(tensors, config, f"{head}.transform.LayerNorm"),
        Linear(
            tensors.get(f"{head}.decoder.weight", word_embeddings),
            tensors[own if own in tensors else f"{head}.bias"],
        ),
        ACTIVATIONS[config["hidden_act"]],
    )


def example_weights(
    device: torch.device | str, hidden: int = 96, heads: int = 3, layers: int = 2
) -> tuple[BertWeights, MaskedLMWeights]:
    """A small encoder with head, always the same random one, for looking at what runs: 97 words, 64 positions."""
    generator = torch.Generator().manual_seed(20)

    def tensor(*shape: int, level: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.05 + level).to(device)

    def linear(n: int, k: int) -> Linear:
        return Linear(tensor(n, k), tensor(n))

    def norm() -> Norm:
        return Norm(tensor(hidden, level=1.0), tensor(hidden), 1e-12)

    def layer() -> LayerWeights:
        query, key, value, out = (linear(hidden, hidden) for _ in range(4))
        inner, outer = linear(2 * hidden, hidden), linear(hidden, 2 * hidden)
        return LayerWeights(query, key, value, out, norm(), inner, outer, norm(), heads)

    tables = (tensor(rows, hidden) for rows in (97, 64, 2))
    bert = BertWeights(EmbeddingWeights(*tables, norm()), [layer() for _ in range(layers)])
    return bert, MaskedLMWeights(linear(hidden, hidden), norm(), linear(97, hidden))
