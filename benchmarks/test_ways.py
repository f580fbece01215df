"""What people do to a model, on a ragged batch: optimized in place against transformers' class, forward and a step.

The same changes are made to two models of one seed; outputs at real tokens are compared first.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import models
from .peers import transformers_bert
from .race import RACES, Race, report

SHAPE, LOAD, BASELINE = "minilm-l6", "ragged-32", "sdpa"
CONTENDERS = ("bertfast", "sdpa")
BUDGET = 3.0  # seconds of counted rounds of one race


def _lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: test)")
    torch.manual_seed(21)
    options = {"r": 8, "target_modules": ["query", "value"], "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def _int8(model: nn.Module) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torchao.quantize_(model.encoder, torchao.Int8WeightOnlyConfig())
    return model


def _pruned(model: nn.Module) -> nn.Module:
    for layer in model.encoder.layer:
        nn.utils.prune.l1_unstructured(layer.intermediate.dense, "weight", 0.3)
    return model


def _checkpointed(model: nn.Module) -> nn.Module:
    model.gradient_checkpointing_enable()
    return model


CHANGES = {
    "forward, plain": lambda model: model,
    "forward, LoRA": _lora,
    "forward, torchao int8 weights": _int8,
    "forward, pruned": _pruned,
    "step, plain": lambda model: model,
    "step, LoRA": _lora,
    "step, checkpointed": _checkpointed,
}


def _call(model: nn.Module, what: str, batch: dict) -> Callable[[], torch.Tensor]:
    real = batch["attention_mask"].bool()

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(**batch).last_hidden_state[real]

    def step() -> torch.Tensor:
        model.zero_grad()
        loss = model(**batch).last_hidden_state[real].square().mean()
        loss.backward()
        return loss.detach()

    model.train(what.startswith("step"))
    return forward if what.startswith("forward") else step


def run_race(what: str) -> Race:
    import bertfast

    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    fields, batch, calls = {**models.config(SHAPE), **none}, models.batch(LOAD), {}
    state = models.model(SHAPE).state_dict()
    for name in CONTENDERS:
        model = CHANGES[what](transformers_bert.build(fields, state, "sdpa"))
        if name == "bertfast":
            bertfast.optimize(model)
        calls[name] = _call(model, what, batch)
    difference = (calls["bertfast"]() - calls["sdpa"]()).abs().max()
    assert difference < 1e-4, f"{what}: differs by {difference:.2g}"
    race = Race(f"ways {what}", sum(models.LOADS[LOAD]), models.flops(SHAPE, LOAD), BASELINE)
    race.run(calls, BUDGET)
    return race


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("what", CHANGES)
def test_ways(benchmark, what, name):
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    group = f"ways {what}"
    if group not in RACES:
        RACES[group] = run_race(what)
    report(benchmark, RACES[group], name)
