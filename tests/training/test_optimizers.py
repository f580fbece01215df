"""Optimizers beside their formulas in float64, and the count of operations beside torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig
from transformers import BertForMaskedLM as Theirs

from bertfast.training.flops import training_flops
from bertfast.training.optimizers import make_optimizer
from harness import seeds
from training.runs import CONFIG, recipe_of

STEPS = 4
RATE = 0.01


def model() -> torch.nn.Module:
    seeds.restart(1)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3)).double()


def gradients(of: torch.nn.Module) -> list[list[torch.Tensor]]:
    seeds.restart(2)
    return [[torch.randn_like(p) for p in of.parameters()] for _ in range(STEPS)]


def stepped(recipe) -> list[torch.Tensor]:
    mine = model()
    optimizer = make_optimizer(recipe, mine)
    for grads in gradients(mine):
        for parameter, grad in zip(mine.parameters(), grads, strict=True):
            parameter.grad = grad.clone()
        for group in optimizer.param_groups:
            group["lr"] = RATE
        optimizer.step()
    return list(mine.parameters())


def formula(recipe, weight, grads, decay: float) -> torch.Tensor:
    (b1, b2), m, v = recipe.betas, 0.0, 0.0
    for time, grad in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        c1, c2 = (1 - b1**time, 1 - b2**time) if recipe.bias_correction else (1.0, 1.0)
        step = (m / c1) / ((v / c2).sqrt() + recipe.eps)
        if recipe.optimizer == "lamb" and decay:
            step = step + decay * weight
            step = step * weight.norm() / step.norm()
            weight = weight - RATE * step
        else:
            weight = weight - RATE * (step + decay * weight)
    return weight


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_formula(name, correction):
    fields = {"optimizer": name, "bias_correction": correction, "weight_decay": 0.1, "eps": 1e-3}
    recipe = recipe_of("s", **fields)
    got, start = stepped(recipe), model()
    every = zip(*gradients(start), strict=True)
    for mine, weight, grads in zip(got, start.parameters(), every, strict=True):
        want = formula(recipe, weight.detach(), grads, 0.1 if weight.ndim > 1 else 0.0)
        error = (mine.detach() - want).abs().max() / want.abs().max()
        assert error < 1e-12  # float64 both
    assert all(group["lr"] == RATE for group in make_groups(recipe))


def make_groups(recipe):
    optimizer = make_optimizer(recipe, model())
    for group in optimizer.param_groups:
        group["lr"] = RATE
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # leaves the groups as they were
    return optimizer.param_groups


def test_operations_as_torch_counts_them():
    """Of transformers' model on a dense batch; torch counts products alone."""
    config = BertConfig(**{**CONFIG, "vocab_size": 300}, attn_implementation="eager")
    theirs, ids = Theirs(config).train(), torch.randint(0, 300, (4, 32))
    with FlopCounterMode(display=False) as counter:
        theirs(input_ids=ids, labels=ids).loss.backward()
    lengths = np.full(4, 32)
    assert training_flops(config, lengths, labels=128) == counter.get_total_flops()
