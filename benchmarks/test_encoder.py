"""All layers in one native call beside the operations one by one: what the host costs, and how threads share the work.

`tiny`: twelve layers so narrow that the host's time is nearly all there is. A step is a forward and its backward.
"""

from __future__ import annotations

from collections.abc import Callable

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
STEPS = ("tiny", "minilm-8x128")
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


def run_race(load: str, step: bool) -> Race:
    shape, lengths = LOADS[load]
    weights, batch = weights_of(shape), pack_rows([[1] * length for length in lengths], "cpu")
    with torch.no_grad():
        x = encode.embed(weights.embeddings, batch, None)
    contenders = {
        "one-call": lambda: encode.encode_layers(weights, x, batch)[0],
        "by-layers": lambda: by_layers(weights, x, batch),
    }
    if step:
        contenders = {name: _step(run, weights) for name, run in contenders.items()}
    with torch.inference_mode(not step):
        with dispatch.record() as log:
            found = [contenders[name]() for name in CONTENDERS]
        assert all(map(torch.equal, *found)) if step else found[0].equal(found[1])
        assert log[0].operation == "encoder"
        flops = 1.0 if shape == "tiny" else models.flops_of(shape, lengths) * (3 if step else 1)
        race = Race(f"encoder, {load}{' step' * step}", sum(lengths), flops, "by-layers")
        race.run(contenders, BUDGET)
    return race


def _step(run: Callable[[], torch.Tensor], weights: BertWeights):
    leaves = [t for layer in weights.layers for part in layer[:8] for t in part[:2]]

    def step() -> list[torch.Tensor]:
        for leaf in leaves:
            leaf.requires_grad_()
            leaf.grad = None
        out = run()
        out.backward(torch.ones_like(out))
        return [leaf.grad for leaf in leaves]

    return step


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize(
    ("load", "step"), [*((load, False) for load in LOADS), *((load, True) for load in STEPS)]
)
def test_encoder(benchmark, load, step, name):
    key = f"encoder, {load}{' step' * step}"
    if key not in RACES:
        RACES[key] = run_race(load, step)
    report(benchmark, RACES[key], name)
