"""Wrong variants of every operation, each one slip of a kernel: the accuracy check must reject them
all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from . import formulas

Mutation = tuple[str, Callable[..., Tensor]]


def mutations(operation: str) -> list[Mutation]:
    """(name, function) of each wrong variant; the functions take the public one's arguments and
    differentiate.
    """
    dropped = [
        (f"drop {name}", _with(operation, **{name: _zero(name)})) for name in _TERMS[operation]
    ]
    changed = [(name, _with(operation, **changes)) for name, changes in _CHANGES[operation].items()]
    return [*dropped, *changed, *_VARIANTS.get(operation, [])]


def _with(operation: str, **changes: Callable) -> Callable[..., Tensor]:
    """The operation's formula with some arguments replaced by functions of all the arguments."""

    def function(**inputs):
        replaced = {name: change(inputs) for name, change in changes.items()}
        return getattr(formulas, operation)(**{**inputs, **replaced})[0]

    return function


def _zero(name: str) -> Callable:
    return lambda inputs: None if inputs[name] is None else inputs[name] * 0


def _other(name: str) -> Callable:
    return lambda inputs: inputs[name]


def _short(name: str) -> Callable:
    """Without the last column: a loop that forgets its tail."""
    return lambda inputs: F.pad(inputs[name][..., :-1], (0, 1))


def _eps(inputs: dict) -> float:
    return 10 * inputs["eps"]


def _next_seed(inputs: dict) -> Tensor | None:
    """The high word of the seed off by one."""
    return None if inputs["seed"] is None else inputs["seed"] + (1 << 32)


def _next_row(inputs: dict) -> Tensor | None:
    """Dropout that counts the sequences from 1."""
    starts = inputs["cu_seqlens"]
    return None if starts is None else torch.cat([starts.new_zeros(1), starts])


def _cut_ids(inputs: dict) -> Tensor | None:
    return None if inputs["example_ids"] is None else inputs["example_ids"] & 0x7FFFFFFF


def _boundary(inputs: dict) -> Tensor:
    """The first sequence ends one token early."""
    starts = inputs["cu_seqlens"].clone()
    starts[1] -= min(1, len(starts) - 2)
    return starts


def _without_last_label(inputs: dict) -> Tensor:
    last = torch.arange(len(inputs["labels"])) == len(inputs["labels"]) - 1
    return inputs["labels"].masked_fill(last, inputs["ignore_index"])


def _qkv(change: Callable[[Tensor, Tensor, Tensor], tuple]) -> Callable:
    return lambda inputs: torch.stack(change(*inputs["qkv"].unbind(1)), dim=1)


_TERMS = {
    "embedding": ("segment", "position", "ln_bias"),
    "qkv_projection": ("bq", "bk", "bv"),
    "attention": (),
    "linear_gelu": ("bias",),
    "linear_layernorm": ("bias", "residual", "ln_bias"),
    "gelu_layernorm": ("bias", "ln_bias"),
    "masked_cross_entropy": ("bias",),
}
_DROPOUT = {
    "another seed": {"seed": _next_seed},
    "another p": {"p": lambda inputs: inputs["p"] * 0.9},
    "sequences counted from 1": {"cu_seqlens": _next_row},
    "ids ignored": {"example_ids": lambda inputs: None},
    "ids cut to 31 bits": {"example_ids": _cut_ids},
    "no dropout": {"p": lambda inputs: 0.0},
}
_CHANGES: dict[str, dict[str, dict[str, Callable]]] = {
    "embedding": {
        "eps": {"eps": _eps},
        "positions off by one": {
            "position_ids": lambda inputs: (inputs["position_ids"] - 1).clamp(min=0)
        },
        "segments swapped": {"token_type_ids": lambda inputs: 1 - inputs["token_type_ids"]},
        "gradient to the padding row": {"padding_idx": lambda inputs: None},
        "LN forgets a column": {"ln_weight": _short("ln_weight"), "ln_bias": _short("ln_bias")},
        **_DROPOUT,
    },
    "qkv_projection": {
        "query and key swapped": {"wq": _other("wk"), "wk": _other("wq")},
        "value's bias from key": {"bv": _other("bk")},
        "the product forgets a column": {"x": _short("x")},
    },
    "attention": {
        "boundary off by one": {"cu_seqlens": _boundary},
        "keys shifted by one": {"qkv": _qkv(lambda q, k, v: (q, k.roll(1, 0), v))},
        "heads swapped": {"qkv": _qkv(lambda q, k, v: (q, k, v.flip(1)))},
        "key and value swapped": {"qkv": _qkv(lambda q, k, v: (q, v, k))},
        "scale": {"scale": lambda inputs: inputs["scale"] * 0.99},
        "the logits forget a column": {
            "qkv": _qkv(lambda q, k, v: (F.pad(q[..., :-1], (0, 1)), k, v))
        },
        "another seed": {"seed": _next_seed},
        "another p": {"p": lambda inputs: inputs["p"] * 0.9},
        "ids ignored": {"example_ids": lambda inputs: None},
        "ids cut to 31 bits": {"example_ids": _cut_ids},
    },
    "linear_gelu": {"the product forgets a column": {"x": _short("x")}},
    "linear_layernorm": {
        "eps": {"eps": _eps},
        "the product forgets a column": {"x": _short("x")},
        "gain left out": {"ln_weight": lambda inputs: torch.ones_like(inputs["ln_weight"])},
        **_DROPOUT,
    },
    "gelu_layernorm": {
        "eps": {"eps": _eps},
        "the product forgets a column": {"x": _short("x")},
        "gain left out": {"ln_weight": lambda inputs: torch.ones_like(inputs["ln_weight"])},
    },
    "masked_cross_entropy": {
        "the product forgets a column": {"x": _short("x")},
        "labels shifted by one": {"labels": lambda inputs: inputs["labels"].roll(1)},
        "mean over all rows": {"num_items": lambda inputs: len(inputs["labels"])},
        "the last row forgotten": {"labels": _without_last_label},
    },
}


def _tanh_gelu(x, weight, bias):
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _gelu_of_the_product(x, weight, bias):
    return F.gelu(F.linear(x, weight)) + bias


def _unbiased(z, weight, bias, eps):
    return (z - z.mean(-1, keepdim=True)) * (z.var(-1, keepdim=True) + eps).rsqrt() * weight + bias


def _linear_layernorm_unbiased(**inputs):
    z = formulas.linear_layernorm(**inputs)[1]
    return _unbiased(z, inputs["ln_weight"], inputs["ln_bias"], inputs["eps"])


def _gelu_layernorm_unbiased(**inputs):
    z = F.gelu(formulas.gelu_layernorm(**inputs)[1])
    return _unbiased(z, inputs["ln_weight"], inputs["ln_bias"], inputs["eps"])


def _gelu_layernorm_tanh(x, weight, bias, ln_weight, ln_bias, eps):
    z = _tanh_gelu(x, weight, bias)
    return F.layer_norm(z, z.shape[-1:], ln_weight, ln_bias, eps)


_VARIANTS: dict[str, list[Mutation]] = {
    "linear_gelu": [("tanh gelu", _tanh_gelu), ("bias after gelu", _gelu_of_the_product)],
    "linear_layernorm": [("unbiased variance", _linear_layernorm_unbiased)],
    "gelu_layernorm": [
        ("tanh gelu", _gelu_layernorm_tanh),
        ("unbiased variance", _gelu_layernorm_unbiased),
    ],
}
