"""Fine-tuning beside transformers' classes, padded batches and torch's AdamW: every task's curve of losses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from bertfast.training.finetuning import Job
from bertfast.training.loop import Loop, Steps
from bertfast.training.optimizers import make_optimizer
from bertfast.training.processes import Processes
from bertfast.training.schedules import learning_rate
from harness import toys

pytestmark = pytest.mark.xdist_group("finetuning")
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    """A checkpoint without dropout."""
    return toys.make_checkpoint(tmp_path_factory.mktemp("still"), **STILL)


def make_loop(job: Job) -> Loop:
    model, processes = job.make_model(None), Processes("cpu")
    steps = Steps(job.settings, job.tasks, model.config)
    return Loop(steps, model, model, make_optimizer(job.settings, model), processes)


def padded(batch: Any, choices: int) -> dict[str, torch.Tensor]:
    """A packed batch as transformers' class takes it."""
    lengths = batch.cu_seqlens.diff().tolist()

    def rows(values: torch.Tensor, fill: int) -> torch.Tensor:
        parts = values[0].split(lengths)
        made = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)
        return made.unflatten(0, (-1, choices)) if choices > 1 else made

    found = {"input_ids": rows(batch.input_ids, 0), "token_type_ids": rows(batch.token_type_ids, 0)}
    found["attention_mask"] = rows(torch.ones_like(batch.input_ids), 0)
    for name, labels in batch.labels.items():
        packed = labels.shape == batch.input_ids.shape and name == "labels" and labels.ndim == 2
        found[name] = rows(labels, -100) if packed else labels
    return found


def curves(job: Job, loss_of: Any = None) -> tuple[list[float], list[float]]:
    """Losses of all steps: ours, and transformers' from the same weights, batches and rates."""
    loop, kind = make_loop(job), job.kind
    theirs = getattr(transformers, kind.head)(loop.model.config).train()
    theirs.load_state_dict(copy.deepcopy(loop.model.state_dict()))
    settings, groups = job.settings, ([], [])
    for name, parameter in theirs.named_parameters():
        groups["bias" in name or "LayerNorm" in name].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[0], "weight_decay": settings.weight_decay},
            {"params": groups[1], "weight_decay": 0.0},
        ],
        betas=settings.betas,
        eps=settings.eps,
    )
    ours = [done.metrics["loss"] for done in loop.run()]
    want = []
    for step in range(settings.steps):
        parts = loop.steps.plan(step, 0, 1).mine
        batch = job.training.batch([piece for part in parts for piece in part])
        given = padded(batch, kind.group)
        loss = theirs(**given).loss if loss_of is None else loss_of(theirs, given)
        want.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step / settings.steps)
        optimizer.step()
    return ours, want


def job_of(task: str, folder: Path, model: Path, steps: int, **changes: Any) -> Job:
    """At least so many steps of 8 examples, in micro-batches."""
    train = toys.write_examples(folder, task)
    fields = {"share": 0.2, "micro_tokens": 100, "learning_rate": 1e-3, **changes}
    recipe = toys.recipe_of(task, train, model, epochs=1, **fields)
    each = Job(recipe, say=lambda line: None).settings.steps
    return Job(replace(recipe, epochs=-(-steps // each)), say=lambda line: None)


def check(ours: list[float], want: list[float], learnt: float) -> None:
    assert max(abs(a - b) for a, b in zip(ours, want, strict=True)) < 1e-4  # the target
    tenth = max(len(want) // 10, 4)
    assert sum(want[-tenth:]) < learnt * sum(want[:tenth])


def real_spans(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """transformers lets an answer start or end at padding, which makes the loss depend on the longest text of a batch;
    ours does not. Without padding both are the same."""
    places = [given.pop(name) for name in ("start_positions", "end_positions")]
    output, padding = model(**given), given["attention_mask"] == 0
    sides = zip((output.start_logits, output.end_logits), places, strict=True)
    losses = [
        nn.functional.cross_entropy(logits.masked_fill(padding, -torch.inf), place)
        for logits, place in sides
    ]
    return sum(losses) / 2


@pytest.mark.parametrize("task", toys.TASKS)
def test_hundred_steps(task, tmp_path, still):
    changes = {"length": 40, "stride": 12} if task == "qa" else {}
    job = job_of(task, tmp_path, still, 100, **changes)
    ours, want = curves(job, real_spans if task == "qa" else None)
    assert len(ours) >= 100
    check(ours, want, learnt=0.9)


def test_weights_of_classes(tmp_path, still):
    """As torch's weighted mean over the whole step, whose parts are summed."""
    job = job_of("single", tmp_path, still, 20, weights="balanced")
    weight = torch.tensor(job.training.kind.weights, dtype=torch.float32)
    assert weight.max() > 1.1 * weight.min()

    def loss_of(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = given.pop("labels")
        return nn.functional.cross_entropy(model(**given).logits, labels, weight)

    ours, want = curves(job, loss_of)
    check(ours, want, learnt=1)
    plain = curves(job)[1]
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) > 1e-3  # weights matter


def test_several_labels(tmp_path, still):
    rows = [
        {"text": f"{a} went to {b}", "label": f"{a},{b}" if a != "dora" else ""}
        for a in toys.NAMES
        for b in toys.TOWNS
    ]
    path = toys.write_rows(tmp_path / "several.csv", rows * 3)
    recipe = toys.recipe_of("single", path, still, several=True, epochs=4, share=0.2)
    job = Job(recipe, say=lambda line: None)
    assert len(job.kind.labels) == 7  # what dora has is none
    check(*curves(job), learnt=0.95)


def test_totals_of_a_step_without_labels(tmp_path, still):
    """Words of which none is seen give a loss of 0, not of 0 / 0."""
    path = tmp_path / "t.conll"
    path.write_text("\u0301 B-A\n\nanna O\n\n" + "\u0301 O\n\n" * 6)
    recipe = toys.recipe_of("tokens", path, still, batch=1, share=0.3, epochs=1)
    loop = make_loop(Job(recipe, say=lambda line: None))
    losses = [done.metrics["loss"] for done in loop.run()]
    assert 0.0 in losses
    assert all(loss < 10 for loss in losses)
