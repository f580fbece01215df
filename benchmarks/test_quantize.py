"""Models in int8 beside the same in float32, prepacked: whole models, few tokens and many."""

from __future__ import annotations

import copy

import pytest
import torch

from . import models
from .race import RACES, Race, report

CONTENDERS = ("float32", "int8")
LOADS = ("1x16", "8x128")
BUDGET = 4.0  # seconds of counted rounds of one race


def run_race(shape: str, load: str) -> Race:
    plain, batch = models.model(shape, pooler=False), models.batch(load)
    quantized = copy.deepcopy(plain).quantize("int8")
    plain.prepack()

    def call(model):
        @torch.no_grad()
        def run() -> torch.Tensor:
            return model(**batch).last_hidden_state

        return run

    contenders = dict(zip(CONTENDERS, map(call, (plain, quantized)), strict=True))
    want, got = (run().flatten(0, 1) for run in contenders.values())
    assert torch.cosine_similarity(want, got).min() > 0.99
    tokens = want.shape[0]
    race = Race(f"int8, {shape}, {load}", tokens, models.flops(shape, load), "float32")
    race.run(contenders, BUDGET)
    return race


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("shape", models.SHAPES)
def test_quantize(benchmark, shape, load, name):
    key = f"int8, {shape}, {load}"
    if key not in RACES:
        RACES[key] = run_race(shape, load)
    report(benchmark, RACES[key], name)
