"""A model's parameters, counted part by part, beside what is told of BERT's."""

from __future__ import annotations

import os
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn

from ..checkpoint.load import read_config

UNCASED = 30_522  # words of the published uncased vocabulary
MEBI = 2**20
# the modules that make a part, by how a parameter's name starts; the first that fits
_PARTS = {
    "bert.embeddings.word_embeddings": "word embeddings",
    "bert.embeddings.position_embeddings": "position embeddings",
    "bert.embeddings.token_type_embeddings": "segment embeddings",
    "bert.embeddings.LayerNorm": "LayerNorm of the embeddings",
    "bert.encoder.layer.*.attention": "attention of all layers",
    "bert.encoder": "feed-forward of all layers",
    "bert.pooler": "pooler",
    "cls.predictions": "head for masked words",
    "cls.seq_relationship": "head for next sentences",
}
_HEADS = tuple(part for part in _PARTS.values() if part.startswith("head"))


class Counted(NamedTuple):
    """parts: parameters of each part of `BertForPreTraining`; what is shared counts once. missing: the parts that the
    checkpoint lacks. config: of the checkpoint."""

    parts: dict[str, int]
    missing: list[str]
    config: dict[str, Any]

    @property
    def encoder(self) -> int:
        """Without heads: what `BertModel` has."""
        return sum(count for part, count in self.parts.items() if part not in _HEADS)

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def count(folder: str | os.PathLike[str]) -> Counted:
    """The parameters of a checkpoint with the heads of pretraining.

    Raises:
        ConfigError, CheckpointError: it is no BERT, or its files are damaged.
    """
    from ..models.heads import BertForPreTraining
    from ..models.pretraining import quiet

    config = read_config(folder)
    with quiet():
        model, found = BertForPreTraining.from_pretrained(folder, output_loading_info=True)
    missing = {_part(name) for name in found["missing_keys"]}
    parts = parts_of(model)
    return Counted(parts, [part for part in parts if part in missing], config)


def of_shape(layers: int, hidden: int, heads: int, words: int) -> Counted:
    """The parameters of a BERT of some shape, whose other sizes are the published ones. Nothing is allocated."""
    from ..models.pretraining import make_config, make_model

    sizes = {
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }
    with torch.device("meta"):
        model = make_model(make_config(None, sizes), None, seed=0, next_sentence=True)
    return Counted(parts_of(model), [], sizes)


def parts_of(model: nn.Module) -> dict[str, int]:
    """Parameters of each part of a `BertForPreTraining`."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        found[_part(name)] += parameter.numel()
    return {part: found[part] for part in _PARTS.values()}


def explanation() -> tuple[str, ...]:
    """What the published numbers count, in sentences; the counts are made here."""
    base, large = of_shape(12, 768, 12, UNCASED), of_shape(24, 1024, 16, UNCASED)
    rest = base.encoder - base.parts["word embeddings"]
    untied = base.total + UNCASED * 768
    return (
        f"110M: the uncased BERT-base has {base.encoder:,} with its pooler, {base.total:,} with the heads of "
        "pretraining, whose output matrix is that of the word embeddings.",
        f"340M: the uncased BERT-large has {large.encoder:,}, with these heads {large.total:,}; the paper rounds up.",
        f'115 million (1.15亿): no count of BERT-base comes to it. It is most likely "110M" read with M = 2^20: '
        f"110 x {MEBI:,} = {110 * MEBI:,}; an article that tells it counts the parts in 2^20. A count would need "
        f"{(115_000_000 - rest) / 768:,.0f} words instead of {UNCASED:,}; with an output matrix of its own it is "
        f"{untied:,}.",
    )


def _part(name: str) -> str:
    return next(part for start, part in _PARTS.items() if fnmatchcase(name, f"{start}*"))
