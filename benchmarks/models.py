"""The models and batches that whole-model benchmarks run: seeded random weights, real lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bertfast import BertConfig, BertModel

SHAPES = {
    "base": {},
    "minilm-l6": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
# 32 sentences: lognormal lengths, median 40, clipped to 8 .. 512
RAGGED = np.random.RandomState(20).lognormal(np.log(40), 0.8, 32).clip(8, 512).astype(int).tolist()
LOADS = {"8x128": [128] * 8, "16x128": [128] * 16, "1x16": [16], "ragged-32": RAGGED}


def config(shape: str) -> dict:
    """The fields of config.json."""
    return {**BertConfig().to_dict(), **SHAPES[shape]}


def model(shape: str, pooler: bool = True) -> BertModel:
    """A BertModel in eval mode, the same weights every time."""
    return model_of(config(shape), pooler)


def model_of(fields: dict, pooler: bool = True) -> BertModel:
    """The same with these fields of config.json."""
    torch.manual_seed(20)
    return BertModel(BertConfig(**fields), add_pooling_layer=pooler).eval()


def batch(load: str) -> dict[str, Tensor]:
    """input_ids and, where the lengths differ, attention_mask."""
    return batch_of(LOADS[load])


def batch_of(lengths: Sequence[int]) -> dict[str, Tensor]:
    """The same for sentences of these lengths."""
    lengths = torch.tensor(lengths)
    generator = torch.Generator().manual_seed(20)
    ids = torch.randint(1000, 30000, (len(lengths), int(lengths.max())), generator=generator)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    if real.all():
        return {"input_ids": ids}
    return {"input_ids": ids.masked_fill(~real, 0), "attention_mask": real.long()}


def flops(shape: str, load: str) -> float:
    """Operations of the matrix products of all layers, real tokens only; the pooler's rows are left out."""
    return flops_of(shape, LOADS[load])


def flops_of(shape: str, lengths: Sequence[int]) -> float:
    """The same for sentences of these lengths."""
    fields = config(shape)
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    products = 2 * sum(lengths) * (4 * hidden**2 + 2 * hidden * inner)
    attention = 4 * sum(length**2 for length in lengths) * hidden
    return float(fields["num_hidden_layers"] * (products + attention))
