"""How large the steps' work is: BERT-base's on a GPU, tiny on the stand-in."""

from __future__ import annotations

from typing import NamedTuple

from bertfast.tuning.inputs import Case

from .. import gpu


class Sizes(NamedTuple):
    """Fields:
    fields: of config.json, beside BERT-base's. loads: lengths of the sequences by name.
    tokens: of the products. rounds: samples of a contender. forwards: that are profiled.
    copy: bytes of what is copied. square: rows and columns of the product at its ceiling.
    flush: bytes that empty the cache. rotating: bytes of the operands that a graph goes through.
    """

    fields: dict
    loads: dict[str, tuple[int, ...]]
    tokens: tuple[int, ...]
    rounds: int
    forwards: int
    copy: int
    square: int
    flush: int
    rotating: int

    def case(self, operation: str, load: str) -> Case:
        """The model's shape of an operation at a load."""
        return self.of(operation, load, self.loads[load])

    def of(self, operation: str, name: str, lengths: tuple[int, ...]) -> Case:
        """The same with other lengths."""
        inner, outer = {
            "embedding": (self.hidden, self.vocabulary),
            "linear_gelu": (self.hidden, self.inner),
            "linear_layernorm": (self.inner, self.hidden),
        }.get(operation, (self.hidden, self.hidden))
        return Case(name, lengths, inner, outer, self.heads, eps=1e-12)

    @property
    def hidden(self) -> int:
        return self.fields["hidden_size"]

    @property
    def inner(self) -> int:
        return self.fields["intermediate_size"]

    @property
    def heads(self) -> int:
        return self.fields["num_attention_heads"]

    @property
    def vocabulary(self) -> int:
        return self.fields["vocab_size"]


# 16 lengths, 60 % of 16 x 128: few enough that no table sends the layers elsewhere than to one call of `cuda`
_RAGGED = tuple(round(128 * (gpu.RAGGED_SHARE + (i - 7.5) / 20)) for i in range(16))
_LOADS = {**gpu.LOADS, "ragged-16x128": _RAGGED}
FULL = Sizes(
    fields={
        "hidden_size": gpu.HIDDEN,
        "num_attention_heads": gpu.HEADS,
        "intermediate_size": gpu.INNER,
        "vocab_size": gpu.VOCABULARY,
        "num_hidden_layers": 12,
    },
    loads=_LOADS,
    tokens=(128, 1024, 4096, 16384),
    rounds=gpu.ROUNDS,
    forwards=50,
    copy=1 << 30,
    square=8192,
    flush=gpu.L2_BYTES,
    rotating=gpu.L2_BYTES,
)
TINY = Sizes(
    fields={
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": gpu.VOCABULARY,
        "num_hidden_layers": 1,
    },
    loads={
        name: tuple(max(1, length // 64) for length in lengths[:3])
        for name, lengths in _LOADS.items()
    },
    tokens=(2, 5),
    rounds=2,
    forwards=3,
    copy=1 << 10,
    square=8,
    flush=1 << 10,
    rotating=1 << 12,
)
