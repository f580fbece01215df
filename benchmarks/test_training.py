"""Speed and memory of a training step (forward, backward, AdamW) of the encoder, dropout on, against transformers sdpa.

The loss is the first token's output along a fixed random direction: it reaches every layer and costs nothing. Before
the race, gradients with dropout off are compared on the same weights.
"""

from __future__ import annotations

import pytest
import torch

from . import models
from .memory import measure_call
from .peers import transformers_bert
from .race import RACES, Race, report

BASELINE = "sdpa"
CONTENDERS = ("bertfast", "sdpa")
LOADS = ("16x128", "ragged-32")
BUDGET = 6.0  # seconds of counted rounds of one race


class Step:
    """One training step of a model on a batch."""

    def __init__(self, model, batch: dict):
        self.model, self.batch = model.train(), batch
        self.direction = torch.randn(
            model.config.hidden_size, generator=torch.Generator().manual_seed(20)
        )
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss(self) -> torch.Tensor:
        return (self.model(**self.batch).last_hidden_state[:, 0] @ self.direction).mean()

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def build(name: str, shape: str, load: str) -> Step:
    ours = models.model(shape, pooler=False)
    if name == "sdpa":
        ours = transformers_bert.build(
            models.config(shape), ours.state_dict(), "sdpa", pooler=False
        )
    return Step(ours, models.batch(load))


def _gradients(step: Step) -> dict[str, torch.Tensor]:
    step.model.eval()
    step.loss().backward()
    gradients = {name: p.grad.clone() for name, p in step.model.named_parameters()}
    step.optimizer.zero_grad()
    step.model.train()
    return gradients


def _compare(ours: Step, theirs: Step) -> None:
    expected = _gradients(theirs)
    for name, gradient in _gradients(ours).items():
        scale = expected[name].abs().max().clamp(min=1e-7)
        difference = (gradient - expected[name]).abs().max() / scale
        # The gradient of a key's bias is 0 but for rounding.
        assert difference < 1e-3 or name.endswith("key.bias"), (
            f"{name} differs by {difference:.2g} of its largest value"
        )


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("shape", models.SHAPES)
def test_training(benchmark, shape, load, name):
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    group = f"training step {shape} {load}"
    if group not in RACES:
        contenders = {contender: build(contender, shape, load) for contender in CONTENDERS}
        _compare(*contenders.values())
        race = Race(group, sum(models.LOADS[load]), 3 * models.flops(shape, load), BASELINE)
        race.run(contenders, BUDGET)
        RACES[group] = race
    report(benchmark, RACES[group], name)


def measure(pipe, name: str, threads: int) -> None:
    """In a process of its own: sends (steady MiB, MiB above it at the peak of one step)."""
    torch.set_num_threads(threads)
    pipe.send(measure_call(build(name, "base", "ragged-32"), warm=2))


@pytest.mark.parametrize("name", CONTENDERS)
def test_training_memory(benchmark, name, in_own_process):
    in_own_process(benchmark, "training step base ragged-32", name, measure)
