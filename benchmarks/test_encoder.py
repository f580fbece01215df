"""All layers in one native call beside the operations one by one: what the host costs, and how threads share the work.

`tiny`: twelve layers so narrow that the host's time is nearly all there is.
"""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch
from bertfast.core import encode
from bertfast.core.batch import pack_rows
from bertfast.core.weights import BertWeights, example_weights

from . import models
from .race import RACES, Race, report

LOADS = {
    "tiny": ("tiny", [8, 5]),
    "minilm-1x16": ("minilm-l6", [16]),
    "minilm-8x128": ("minilm-l6", [128] * 8),
    "minilm-ragged": ("minilm-l6", models.RAGGED),
    "base-1x16": ("base", [16]),
    "base-8x128": ("base", [128] * 8),
}
CONTENDERS = ("one-call", "by-layers")
BUDGET = 4.0  # seconds of counted rounds of one race


def weights_of(shape: str) -> BertWeights:
    if shape == "tiny":
        return example_weights("cpu", hidden=16, heads=2, layers=12)[0]
    return models.model(shape, pooler=False).view()


def by_layers(weights: BertWeights, x: torch.Tensor, batch) -> torch.Tensor:
    for layer in weights.layers:
        x = encode.encode_layer(layer, x, batch, (None, None, None))
    return x


def run_race(load: str) -> Race:
    shape, lengths = LOADS[load]
    weights, batch = weights_of(shape), pack_rows([[1] * length for length in lengths], "cpu")
    with torch.inference_mode():
        x = encode.embed(weights.embeddings, batch, None)
        contenders = {
            "one-call": lambda: encode.encode_layers(weights, x, batch)[0],
            "by-layers": lambda: by_layers(weights, x, batch),
        }
        with dispatch.record() as log:
            assert contenders["one-call"]().equal(contenders["by-layers"]())
        assert log[0].operation == "encoder"
        flops = 1.0 if shape == "tiny" else models.flops_of(shape, lengths)
        race = Race(f"encoder, {load}", sum(lengths), flops, "by-layers")
        race.run(contenders, BUDGET)
    return race


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("load", LOADS)
def test_encoder(benchmark, load, name):
    key = f"encoder, {load}"
    if key not in RACES:
        RACES[key] = run_race(load)
    report(benchmark, RACES[key], name)
