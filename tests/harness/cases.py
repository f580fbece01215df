"""The cases of every operation, for tests and benchmarks alike. Their inputs: `bertfast.tuning.inputs`."""

from __future__ import annotations

from dataclasses import dataclass, field

from bertfast.tuning import inputs

from .seeds import seed


@dataclass(frozen=True)
class Case(inputs.Case):
    """A case whose inputs follow from the seed of the run."""

    seed: int = field(default_factory=seed)

    def __str__(self) -> str:
        return super().__str__()


_PRODUCT = [
    Case("tiny", (1,), 7, 5),
    Case("odd", (17, 0, 5), 33, 70, strided=True),
    Case("minilm", (129,), 384, 1536),
    Case("base", (17,), 768, 3072),
    Case("large", (5,), 1024, 4096),
    Case("long", (512,), 33, 384),
]
_PRODUCT_LAYERNORM = [
    Case("tiny", (1,), 5, 7),
    Case("odd", (17, 0, 5), 70, 33, strided=True),
    Case("minilm", (129,), 384, 384, eps=1e-12),
    Case("large", (5,), 1024, 1024),
    Case("long", (512,), 33, 384),
    Case("near-constant", (17,), 64, 768, variant="near-constant"),
    Case("large-mean", (17,), 64, 768, variant="large-mean"),
]
CASES: dict[str, list[Case]] = {
    "embedding": [
        Case("tiny", (1,), 7, 11),
        Case("odd", (17, 0, 5), 33, 50),
        Case("minilm", (129,), 384, 1000, eps=1e-12),
        Case("large", (17,), 1024, 100),
        Case("long", (512,), 33, 100),
        Case("embeds", (17, 1), 768, variant="embeds", strided=True),
        Case("dropout", (17, 0, 129), 33, 50, p=0.1, variant="ids"),
        Case("near-constant", (17,), 768, 100, variant="near-constant"),
        Case("large-mean", (17,), 768, 100, variant="large-mean"),
        Case("wide", (5, 0, 4), 1100, 9, p=0.1),
        Case("many", (1, 0, 0, 1, 0) * 14, 17, 9, p=0.1),
    ],
    "qkv_projection": [
        Case("tiny", (1,), 7, 6, heads=2),
        Case("odd", (17, 0, 5), 33, 33, heads=3, strided=True),
        Case("minilm", (129,), 384, 384, heads=12),
        Case("base", (17,), 768, 768, heads=12),
        Case("large", (5,), 1024, 1024, heads=16),
        Case("long", (512,), 33, 64, heads=1),
    ],
    "attention": [
        Case("tiny", (1,), outer=6, heads=2),
        Case("odd", (17, 0, 5), outer=33, heads=3, strided=True),
        Case("minilm", (1, 17, 0, 129), outer=384, heads=12),
        Case("base", (129, 17), outer=256, heads=4),
        Case("long", (512,), outer=64, heads=1),
        Case("dropout", (17, 0, 129, 1), outer=96, heads=3, p=0.1, variant="ids"),
        Case("beyond-512", (530, 3), outer=24, heads=2, p=0.1),
        Case("sharp", (33, 17), outer=128, heads=2, variant="sharp"),
        Case("head-128", (70, 0, 17), outer=256, heads=2, p=0.1),
        Case("many", (3, 0, 0, 1, 0) * 14, outer=16, heads=1, p=0.1),
    ],
    "linear_gelu": _PRODUCT,
    "linear_layernorm": [
        *_PRODUCT_LAYERNORM,
        Case("base", (17,), 3072, 768),
        Case("dropout", (17, 0, 129), 64, 33, p=0.1, variant="ids"),
        Case("wide", (5, 0, 4), 33, 1100, p=0.1),
        Case("mixed", (17, 0, 65), 64, 33, p=0.1, strided=True, mixed=True),
        Case("mixed-large-mean", (17,), 64, 768, mixed=True, variant="large-mean"),
        Case("mixed-wide", (5, 0, 4), 33, 1100, p=0.1, mixed=True),
    ],
    "gelu_layernorm": [
        *_PRODUCT_LAYERNORM,
        Case("wide", (5, 0, 4), 33, 1100),
        Case("mixed", (17, 0, 65), 64, 97, strided=True, mixed=True),
        Case("mixed-wide", (5, 0, 4), 33, 1100, mixed=True),
    ],
    "masked_cross_entropy": [
        Case("tiny", (1,), 7, 11),
        Case("odd", (17, 0, 5), 33, 101, strided=True),
        Case("base", (129,), 768, 3001),
        Case("long", (512,), 33, 384),
        Case("no-bias", (17,), 64, 101, variant="no-bias"),
        Case("num-items", (17, 5), 64, 101, variant="num-items"),
    ],
}

_RAGGED = (8, 512, 40, 23, 77, 31, 120, 55, 18, 64, 36, 210, 44, 29, 92, 15)
_LOADS = {"8x128": (128,) * 8, "1x16": (16,), "ragged": _RAGGED}


def timed_cases(operation: str) -> list[Case]:
    """The sizes that benchmarks time: BERT-base and MiniLM-L6 shapes, dense, one short sentence,
    ragged.
    """
    cases = []
    for model, hidden, heads in (("base", 768, 12), ("minilm", 384, 12)):
        inner, outer = {
            "embedding": (hidden, 30522),
            "linear_gelu": (hidden, 4 * hidden),
            "linear_layernorm": (4 * hidden, hidden),
            "masked_cross_entropy": (hidden, 30522),
        }.get(operation, (hidden, hidden))
        cases += [
            Case(f"{model}-{load}", lengths, inner, outer, heads, eps=1e-12)
            for load, lengths in _LOADS.items()
        ]
    return cases
