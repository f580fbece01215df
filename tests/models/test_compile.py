"""torch.compile(fullgraph=True) over ragged shapes: few graphs, equal results, backward and dropout too."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import prune

from harness import near, seeds
from models.ecosystem import differing, in_float64

SHAPES = [(3, 17), (5, 29), (2, 40), (7, 11), (1, 23)]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same_bits(got, want):
    assert list(got) == list(want)
    assert not differing(got, want)


def batches():
    for rows, columns in SHAPES:
        mask = (torch.rand(rows, columns) > 0.3).long()
        mask[0, 0] = 1
        yield {"input_ids": torch.randint(0, 99, (rows, columns)), "attention_mask": mask}


@torch.no_grad()
def test_inference(ours):
    model = ours()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for inputs in batches():
        got, want = compiled(**inputs), model(**inputs)
        assert type(got) is type(want)
        assert got[0].equal(want[0])
        assert got[1].equal(want[1])
    assert counter.frame_count <= 3


def test_training(ours):
    """Dropout is on: the compiled model draws the seeds that the eager one draws."""
    model = ours().train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for inputs in batches():
        results = []
        for run in (model, compiled):
            model.zero_grad()
            seeds.restart(4)
            output = run(**inputs)
            (output[0].sin().sum() + output[1].sum()).backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            results.append([output[0].detach(), *grads])
        for got, want in zip(results[1], results[0], strict=True):
            assert got.equal(want)
    assert counter.frame_count <= 3


def test_other_inputs(ours):
    """Packed, dense, embeddings and hidden states compile in one graph too."""
    model = ours(num_hidden_layers=1)
    ids, starts = torch.randint(0, 99, (1, 19)), torch.tensor([0, 4, 4, 19], dtype=torch.int32)
    mask = torch.ones(1, 19)
    mask[0, 7:] = 0
    for inputs in (
        {"input_ids": ids, "cu_seq_lens_q": starts, "max_length_q": 15},
        {"input_ids": ids, "output_hidden_states": True},
        {"inputs_embeds": torch.randn(1, 19, 48), "attention_mask": mask},
    ):
        torch._dynamo.reset()
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
        same_bits(got, model(**inputs))


def test_stand_ins(ours):
    model = ours(hidden_act="relu", num_hidden_layers=1)
    prune.l1_unstructured(model.encoder.layer[0].attention.self.query, "weight", 0.5)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got, want = (run(mask * 5, mask) for run in (compiled, model))
    same_bits(got, want)


def test_hooks(pair):
    """transformers' forward is what gets compiled."""
    theirs, ours = pair(num_hidden_layers=1)
    for model in (theirs, ours):
        model.encoder.layer[0].attention.self.query.register_forward_hook(
            lambda _, inputs, out: out * 2
        )
    ids = torch.tensor([[5, 5, 5], [5, 1, 2]])
    near(
        "output",
        torch.compile(ours, backend="aot_eager")(ids),
        in_float64(theirs)(ids),
        theirs(ids),
    )


@torch.no_grad()
def test_without_fullgraph(ours):
    """No graph break, and few frames over many ragged shapes."""
    model, counters = ours(), torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(model, backend="aot_eager")
    for rows in range(2, 12):
        ids = torch.randint(0, 99, (rows, 10 + 3 * (rows % 9)))
        mask = (torch.arange(ids.shape[1]) < torch.randint(1, 30, (rows, 1))).long()
        got, want = compiled(ids, attention_mask=mask), model(ids, attention_mask=mask)
        assert got[0].equal(want[0])
    assert not counters["graph_break"]
    assert counters["frames"]["total"] <= 6


def test_inductor(ours):
    model = ours()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for inputs in list(batches())[:2]:
        found = []
        for run in (compiled, in_float64(model), model):
            output = run(**inputs)
            weight = (model if run is compiled else run).encoder.layer[0].output.dense.weight
            (grad,) = torch.autograd.grad(output[0].sin().sum(), weight)
            found.append((*output.to_tuple(), grad))
        near("output and gradient", *found)
