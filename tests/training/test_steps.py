"""What a step is made of: schedules, order, shares of processes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bertfast.data.order import Order
from bertfast.training import ranks
from bertfast.training.loop import Steps, dropout_seed
from bertfast.training.pretraining import make_config, make_tasks
from bertfast.training.schedules import learning_rate, sequences
from harness import seeds
from training.runs import recipe_of


def rates(schedule: str, places: tuple[float, ...], **fields) -> list[float]:
    budget = {"budget": "1h"} if schedule == "budget" else {}
    given = {"schedule": schedule, "learning_rate": 2.0, "warmup": 0.1, **budget, **fields}
    recipe = recipe_of("s", **given)
    return [round(learning_rate(recipe, place), 9) for place in places]


def test_schedules():
    places = (0.0, 0.05, 0.1, 0.55, 0.9, 1.0)
    for schedule in ("linear", "budget"):
        assert rates(schedule, places) == [0.0, 1.0, 2.0, 1.0, 0.222222222, 0.0]
    assert rates("warmup-stable-decay", places, decay=0.2) == [0.0, 1.0, 2.0, 2.0, 1.0, 0.0]
    assert rates("linear", (0.0, 1.0), warmup=0.0) == [2.0, 0.0]


def test_ramp():
    recipe = recipe_of("s", ramp=0.5, phases=[{"steps": 8, "batch": 64}])
    assert sequences(recipe, recipe.phases[0]).tolist() == [22, 36, 50, 64, 64, 64, 64, 64]
    assert set(sequences(recipe_of("s"), recipe.phases[0])) == {64}


def test_every_epoch_has_every_example_once():
    counts = (37, 41, 29)
    order = Order(lambda epoch: counts[epoch % 3], 7, np.full(4, 10))
    seen = [
        (piece.epoch, index)
        for step in range(14)
        for piece in order.step(step)
        for index in piece.indices
    ]
    assert len(seen) == 140
    first, second = ([index for epoch, index in seen if epoch == wanted] for wanted in (0, 1))
    assert sorted(first) == list(range(37))
    assert sorted(second) == list(range(41))
    assert first[:20] != sorted(first)[:20]
    assert [index for index in first if index < 30] != [index for index in second if index < 30]


def test_order_from_any_step():
    def count(epoch):
        return 37 + epoch

    whole = Order(count, 7, np.array([5, 6, 7]))
    steps = [whole.step(step) for step in range(30)]
    resumed = Order(None, 7, np.array([5, 6, 7]), whole.starts)  # no epoch is counted again
    for step in (29, 3, 17):
        for piece, other in zip(steps[step], resumed.step(step), strict=True):
            assert piece.epoch == other.epoch
            assert np.array_equal(piece.indices, other.indices)


def test_ranks_put_together_are_the_step(store):
    recipe = recipe_of(store.folder)
    steps = Steps(recipe, make_tasks(recipe, store), make_config(recipe, store))
    for step in (0, 7, 8, 11):
        found = []
        for count in (1, 2, 4):
            plans = [steps.plan(step, rank, count) for rank in range(count)]
            assert len({len(plan.mine) for plan in plans}) == 1
            found.append(
                sorted(
                    (p.epoch, i)
                    for plan in plans
                    for part in plan.mine
                    for p in part
                    for i in p.indices
                )
            )
        assert found[0] == found[1] == found[2]
        assert len(found[0]) == 8


def test_micro_batches_hold_their_tokens():
    draw = np.random.default_rng(seeds.seed())
    lengths = draw.integers(5, 129, 64)
    for count in (1, 3):
        parts = ranks.parts_of_step(lengths, lengths**1.5, count, 500)
        flat = np.concatenate([places for own in parts for places in own])
        assert sorted(flat) == list(range(64))
        assert max(lengths[places].sum() for own in parts for places in own) <= 500
    lone = ranks.parts_of_step(np.array([90, 80]), np.array([90.0, 80.0]), 2, 10)
    assert [len(own) for own in lone] == [1, 1]


def test_work_of_ranks_is_even():
    """Lengths as of a lognormal corpus, 8 processes with 32 sequences each."""
    config = SimpleNamespace(hidden_size=768, intermediate_size=3072)
    draw = np.random.default_rng(seeds.seed())
    for _ in range(20):
        lengths = np.clip(np.exp(draw.normal(4.2, 0.8, 256)), 5, 512).astype(np.int64)
        cost = ranks.work(lengths, config)
        shares = np.array([cost[places].sum() for places in ranks.share(cost, 8)])
        assert shares.max() / shares.mean() <= 1.03  # the target


def test_dropout_seeds_differ():
    found = {dropout_seed(seed, step) for seed in range(20) for step in range(50)}
    assert len(found) == 1000
    assert all(0 <= seed < 2**63 for seed in found)


@pytest.mark.parametrize("step", [0, 3])
def test_collation_is_free_to_be_cut(store, step):
    """A batch is its sequences, whoever makes which."""
    recipe = recipe_of(store.folder)
    task = make_tasks(recipe, store)[0]
    (piece,) = Order(task.examples, 5, np.full(9, 8)).step(step)
    whole = task.collate(piece.indices, piece.epoch)
    starts = whole.cu_seqlens.tolist()
    for row, index in enumerate(piece.indices):
        alone = task.collate([index], piece.epoch)
        part = slice(starts[row], starts[row + 1])
        assert alone.input_ids[0].tolist() == whole.input_ids[0, part].tolist()
        assert alone.labels[0].tolist() == whole.labels[0, part].tolist()
