"""Seeded inputs of every operation that tell right from wrong, whatever their size.

Every term counts: attention logits of deviation 4, random gain and bias in LN, random segments and positions; rows near
constant (where eps shows) and rows with a large mean are cases of their own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SEGMENTS = 2
POSITIONS = 600


@dataclass(frozen=True)
class Case:
    """Sizes and kind of one input.

    Fields:
        lengths: tokens of each sequence; T is their sum.
        inner: features of x (K). outer: features of the result (N), vocabulary where words are looked up or predicted.
        heads: attention heads; the head size is outer / heads.
        p: dropout. strided: rows are cut from wider tensors, gradients too.
        mixed: LN's parameters, the residual and the result are float32 where the rest is in a half.
        variant: "", or what is special: "near-constant", "large-mean", "sharp", "embeds", "no-bias", "num-items",
            "ids" (dropout counts by the examples' ids).
    """

    name: str
    lengths: tuple[int, ...]
    inner: int = 0
    outer: int = 0
    heads: int = 1
    p: float = 0.0
    strided: bool = False
    mixed: bool = False
    variant: str = ""
    eps: float = 1e-3
    seed: int = 20

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def ln_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of the result, of LN's parameters and of the residual, where the other inputs have `dtype`."""
        return torch.float32 if self.mixed and dtype != torch.float64 else dtype

    def __str__(self) -> str:
        return f"{self.name}-seed{self.seed}"


class _Source:
    """Seeded tensors in one dtype; in a strided case rows lie apart and the columns start off a boundary."""

    def __init__(self, case: Case, dtype: torch.dtype, seed: int):
        self.case, self.dtype = case, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def beside(self) -> _Source:
        """The same source in the dtype of what stands beside a product."""
        source = copy.copy(self)
        source.dtype = self.case.ln_dtype(self.dtype)
        return source

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        strided = self.case.strided and len(shape) > 1
        whole = (*shape[:-1], shape[-1] + 5) if strided else shape
        values = torch.randn(whole, generator=self.generator, dtype=torch.float32)
        values = (values * scale + mean).to(self.dtype)
        return values[..., 3 : 3 + shape[-1]] if strided else values

    def integers(self, low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=self.generator)

    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *self.case.lengths]).cumsum(0).to(torch.int32)

    def row_scale(self) -> tuple[float, float]:
        """(deviation, mean) of what LN normalises."""
        special = {"near-constant": (0.03, 1.0), "large-mean": (1.0, 100.0)}
        return special.get(self.case.variant, (1.0, 0.0))

    def dropout(self) -> dict:
        dropped = self.case.p > 0
        seed = torch.tensor([0x0123456789ABCDEF + self.case.seed]) if dropped else None
        return {
            "p": self.case.p,
            "seed": seed,
            "cu_seqlens": self.cu_seqlens() if dropped else None,
            "example_ids": self.example_ids() if self.case.variant == "ids" else None,
        }

    def example_ids(self) -> Tensor:
        """Falling; not dense; their low words are 2^31 or more, and all but the last have a high word."""
        ids = torch.arange(len(self.case.lengths), 0, -1) * 0xF1234567
        return ids.repeat_interleave(2)[::2]


def _layer_norm(source: _Source, features: int) -> dict:
    source = source.beside()
    weight, bias = source.normal(features, scale=0.5, mean=1.0), source.normal(features)
    return {"ln_weight": weight, "ln_bias": bias, "eps": source.case.eps}


def _product(source: _Source) -> dict:
    case = source.case
    return {
        "x": source.normal(case.tokens, case.inner),
        "weight": source.normal(case.outer, case.inner, scale=case.inner**-0.5),
        "bias": source.normal(case.outer),
    }


def _embedding(source: _Source) -> dict:
    case, (deviation, mean) = source.case, source.row_scale()
    tokens, hidden, embeds = case.tokens, case.inner, case.variant == "embeds"
    ids = None if embeds else source.integers(0, case.outer, tokens)
    if ids is not None:
        ids[::4] = 0  # the padding row, often
    return {
        "input_ids": ids,
        "word": None if embeds else source.normal(case.outer, hidden, scale=deviation),
        "inputs_embeds": source.normal(tokens, hidden, scale=deviation) if embeds else None,
        "position_ids": source.integers(0, POSITIONS, tokens),
        "position": source.normal(POSITIONS, hidden, scale=deviation, mean=mean),
        "token_type_ids": source.integers(0, SEGMENTS, tokens),
        "segment": source.normal(SEGMENTS, hidden, scale=deviation),
        **_layer_norm(source, hidden),
        **source.dropout(),
        "padding_idx": 0,
    }


def _qkv_projection(source: _Source) -> dict:
    case = source.case
    inputs = {"x": source.normal(case.tokens, case.inner)}
    for name in "qkv":
        inputs[f"w{name}"] = source.normal(case.outer, case.inner, scale=case.inner**-0.5)
    for name in "qkv":
        inputs[f"b{name}"] = source.normal(case.outer)
    return {**inputs, "num_heads": case.heads}


def _attention(source: _Source) -> dict:
    case = source.case
    size = case.outer // case.heads
    qkv = source.normal(case.tokens, 3, case.heads, size)
    # the deviation of the logits, as the keys have 1
    qkv[:, 0] *= 40 if case.variant == "sharp" else 4
    dropout = source.dropout()
    del dropout["cu_seqlens"]
    sequences = {"cu_seqlens": source.cu_seqlens(), "max_seqlen": max(case.lengths) + 3}
    return {"qkv": qkv, **sequences, "scale": size**-0.5, **dropout}


def _linear_layernorm(source: _Source) -> dict:
    deviation, mean = source.row_scale()
    product = _product(source)
    product["weight"] *= deviation
    product["bias"] *= deviation
    shape = source.case.tokens, source.case.outer
    product["residual"] = source.beside().normal(*shape, scale=deviation, mean=mean)
    return {**product, **_layer_norm(source, source.case.outer), **source.dropout()}


def _gelu_layernorm(source: _Source) -> dict:
    deviation, mean = source.row_scale()
    product = _product(source)
    product["weight"] *= deviation
    product["bias"] = source.normal(source.case.outer, scale=deviation, mean=mean)
    return {**product, **_layer_norm(source, source.case.outer)}


def _masked_cross_entropy(source: _Source) -> dict:
    case, product = source.case, _product(source)
    labels = source.integers(0, case.outer, case.tokens)
    labels[source.integers(0, 4, case.tokens) > 0] = -100
    labels[-1:] = case.outer - 1
    if case.variant == "no-bias":
        product["bias"] = None
    num_items = 37 if case.variant == "num-items" else None
    return {**product, "labels": labels, "ignore_index": -100, "num_items": num_items}


_INPUTS: dict[str, Callable[[_Source], dict]] = {
    "embedding": _embedding,
    "qkv_projection": _qkv_projection,
    "attention": _attention,
    "linear_gelu": _product,
    "linear_layernorm": _linear_layernorm,
    "gelu_layernorm": _gelu_layernorm,
    "masked_cross_entropy": _masked_cross_entropy,
}


@functools.lru_cache(maxsize=2)
def _made(operation: str, case: Case, dtype: torch.dtype) -> dict:
    return _INPUTS[operation](_Source(case, dtype, case.seed))


def make_inputs(
    operation: str, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict:
    """The arguments of the public function by name, floating-point tensors in `dtype` (in a mixed
    case some in `case.ln_dtype`), the same for the same case.
    """
    inputs = _made(operation, case, dtype)
    if torch.device(device).type == "cpu":
        return dict(inputs)
    return {
        name: _moved(value, device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def _moved(value: Tensor, device: torch.device | str) -> Tensor:
    """On a device, with the strides and the offset that it has here, which `to` would not keep."""
    memory = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return memory.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


def make_gradient(case: Case, like: Tensor) -> Tensor:
    """A random gradient of the result `like`, strided where the case is."""
    gradient = _Source(case, like.dtype, case.seed + 1).normal(*like.shape)
    return gradient if like.device.type == "cpu" else _moved(gradient, like.device)
