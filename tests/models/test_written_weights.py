"""A write to a weight by any way shows in the very next call, whatever the mode, though the model stays as it is."""

from __future__ import annotations

import contextlib
import copy
import os

import pytest
import torch
from transformers import BertConfig

from bertfast import BertForMaskedLM, BertForSequenceClassification, BertModel
from harness import seeds

IDS = seeds.token_ids(2, 9)
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": contextlib.nullcontext,
}
LAYER = "encoder.layer.1"
WEIGHTS = (
    *(f"{LAYER}.attention.self.{name}.weight" for name in ("query", "key", "value")),
    f"{LAYER}.attention.output.dense.weight",
    f"{LAYER}.intermediate.dense.weight",
    f"{LAYER}.output.dense.weight",
)
HEADS = {
    BertForMaskedLM: "cls.predictions.transform.dense.weight",
    BertForSequenceClassification: "classifier.weight",
}


def row_of_an_alias(weight):
    weight.detach().numpy()[3] *= 3


def optimizer(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.05, fused=True).step()


def another_process(weight):
    """The memory is shared; a child writes one row and goes."""
    weight.data.share_memory_()
    child = os.fork()
    if child == 0:
        weight.detach().numpy()[3] = 7
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


WRITES = {
    "row": lambda weight: weight.data[1].zero_(),
    "column": lambda weight: weight.data[:, 20].mul_(50),
    "element": lambda weight: weight.data[1, 7].add_(100),
    "numpy": row_of_an_alias,
    "optimizer": optimizer,
    "process": another_process,
}


def build(kind):
    config = BertConfig(
        vocab_size=99,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        num_labels=4,
        initializer_range=0.3,  # each weight counts
    )
    return kind(config).eval()


def check(model, name, write, mode):
    weight = model.get_parameter(name)
    if write is another_process:
        weight.data.share_memory_()
    with MODES[mode]():
        before = model(IDS)[0]
        assert model(IDS)[0].equal(before)
    write(weight)
    with MODES[mode]():
        after, want = model(IDS)[0], copy.deepcopy(model)(IDS)[0]
    assert after.equal(want), name
    assert not after.equal(before), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_model(write, mode):
    for name in WEIGHTS:
        check(build(BertModel), name, write, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)
def test_heads(kind, write, mode):
    for name in (HEADS[kind], f"bert.{WEIGHTS[0]}"):
        check(build(kind), name, write, mode)
