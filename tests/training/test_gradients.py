"""Losses and gradients of steps: beside transformers, however a step is cut, and whatever stands beside an example."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from bertfast.training.loop import Loop, Steps
from bertfast.training.optimizers import make_optimizer
from bertfast.training.pretraining import make_model, make_tasks
from bertfast.training.processes import Processes
from bertfast.training.schedules import learning_rate
from harness import seeds
from harness.near import near
from training.runs import CONFIG, recipe_of

STILL = {**CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STEPS = 100


def make_loop(recipe, store) -> Loop:
    model, processes = make_model(recipe, store), Processes("cpu")
    steps = Steps(recipe, make_tasks(recipe, store), model.config)
    return Loop(steps, model, model, make_optimizer(recipe, model), processes)


def padded(batch) -> dict[str, torch.Tensor]:
    """A packed batch as transformers takes it."""
    lengths = batch.cu_seqlens.diff().tolist()

    def rows(values: torch.Tensor, fill: int) -> torch.Tensor:
        parts = values[0].split(lengths)
        return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)

    mask = rows(torch.ones_like(batch.input_ids), 0)
    found = {"input_ids": rows(batch.input_ids, 0), "attention_mask": mask}
    found |= {"token_type_ids": rows(batch.token_type_ids, 0), "labels": rows(batch.labels, -100)}
    return {**found, "next_sentence_label": batch.next_sentence_label}


def batch_of(loop: Loop, step: int):
    plan = loop.steps.plan(step, 0, 1)
    task = loop.steps.tasks[plan.phase]
    return task.batch([piece for part in plan.mine for piece in part])


@pytest.mark.xdist_group("training")
def test_hundred_steps_of_transformers(store):
    phases = [{"length": 32, "steps": STEPS, "batch": 8, "micro_tokens": 4096}]
    recipe = recipe_of(store.folder, config=STILL, phases=phases, log_every=0, hard=0.3)
    loop = make_loop(recipe, store)
    theirs = transformers.BertForPreTraining(loop.model.config).train()
    theirs.load_state_dict(copy.deepcopy(loop.model.state_dict()))
    optimizer, want = make_optimizer(recipe, theirs), []
    got = [done.metrics["loss"] for done in loop.run()]
    for step in range(STEPS):
        loss = theirs(**padded(batch_of(loop, step))).loss
        want.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step / STEPS)
        optimizer.step()
    assert max(abs(a - b) for a, b in zip(got, want, strict=True)) < 1e-4  # the target
    assert sum(want[:10]) - sum(want[-10:]) > 1  # they learn


def gradients(loop: Loop, step: int = 0) -> dict[str, torch.Tensor]:
    """Of a step of a loop whose optimizer does nothing."""
    loop.optimizer.step = lambda: None
    loop.wrapped.train()
    loop._step(step)
    return {name: p.grad.clone() for name, p in loop.model.named_parameters()}


def test_accumulation(store):
    """One micro-batch, two, eight: the gradients of one step, dropout on; in float64 they are those of the sum."""
    found, counts = {}, []
    for tokens in (4096, 100, 24):
        phases = [{"length": 24, "steps": 5, "batch": 8, "micro_tokens": tokens}]
        loop = make_loop(recipe_of(store.folder, phases=phases, clip=0, log_every=0), store)
        counts.append(len(loop.steps.plan(0, 0, 1).mine))
        found[tokens] = gradients(loop)
        if tokens == 4096:
            exact = make_loop(recipe_of(store.folder, phases=phases, clip=0, log_every=0), store)
            exact.model.double()
            right = gradients(exact)
    assert counts[0] == 1
    assert 2 <= counts[1] < counts[2] <= 8
    for tokens in (100, 24):
        near(f"micro-batches of {tokens}", found[tokens], right, found[4096])


def test_what_stands_beside_an_example(store):
    """A changed sequence changes no bit of the others, in training with dropout."""
    loop = make_loop(recipe_of(store.folder), store)
    batch, rows = batch_of(loop, 0), []
    starts = batch.cu_seqlens.tolist()
    ids = batch.input_ids.clone()
    ids[0, starts[2] + 1 : starts[3] - 1] = 7
    for tokens in (batch.input_ids, ids):
        seeds.restart(3)
        encoded = loop.model.bert.train()(
            input_ids=tokens,
            token_type_ids=batch.token_type_ids,
            cu_seq_lens_q=batch.cu_seqlens,
            max_length_q=batch.max_seqlen,
            example_ids=batch.example_ids,
        )
        rows.append(encoded.last_hidden_state[0])
    for row in range(8):
        part = slice(starts[row], starts[row + 1])
        assert torch.equal(rows[0][part], rows[1][part]) == (row != 2), row
