"""Weights as they lie beside prepacked ones: whole models, few tokens and many, grad mode off and on.

`prepacked` is the same model after `prepack()`; its outputs have the same bits.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from . import models
from .race import RACES, Race, report

CONTENDERS = ("plain", "plain-grad", "prepacked")
LENGTHS = {1: [1], 16: [16], 128: [128], 1024: [128] * 8}
BUDGET = 4.0  # seconds of counted rounds of one race


def run_race(shape: str, tokens: int) -> Race:
    plain, batch = models.model(shape, pooler=False), models.batch_of(LENGTHS[tokens])
    prepacked = copy.deepcopy(plain).prepack()

    def call(model, grad):
        def run() -> torch.Tensor:
            with nullcontext() if grad else torch.no_grad():
                return model(**batch).last_hidden_state

        return run

    contenders = dict(
        zip(
            CONTENDERS, (call(plain, False), call(plain, True), call(prepacked, False)), strict=True
        )
    )
    outputs = [run() for run in contenders.values()]
    assert all(output.equal(outputs[0]) for output in outputs)
    flops = models.flops_of(shape, LENGTHS[tokens])
    race = Race(f"weights, {shape}, {tokens} tokens", tokens, flops, "prepacked")
    race.run(contenders, BUDGET)
    return race


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("shape", models.SHAPES)
def test_weights(benchmark, shape, tokens, name):
    key = f"weights, {shape}, {tokens} tokens"
    if key not in RACES:
        RACES[key] = run_race(shape, tokens)
    report(benchmark, RACES[key], name)
