"""Choices: packed beside padded, and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bertfast
from bertfast.data.order import Piece
from bertfast.errors import ArgumentError
from bertfast.tasks.supervised import Supervised
from harness import seeds, toys
from training.test_task_parity import padded


@pytest.fixture(scope="module")
def model(checkpoint):
    seeds.restart(1)
    return bertfast.BertForMultipleChoice.from_pretrained(checkpoint).eval()


def test_packed_is_padded(kind_of, model):
    """`num_choices` sequences in a row are what [B, choices, S] holds; dropout too, by the sequences' ids."""
    kind = kind_of("choice", labels=("0", "1", "2"))
    inputs = [
        ("i live in rome", ["home is " + "very " * n + t for n, t in enumerate(toys.TOWNS[:3])])
    ] * 4
    sequences = kind.encode(inputs)
    task = Supervised(kind, sequences, kind.targets(np.array([0, 2, 1, 1]), sequences))
    assert task.lengths(0).tolist() == [sum(sequences.lengths[:3])] * 4
    batch = task.batch([Piece(1, np.array([3, 0, 2]))])
    assert batch.example_ids.tolist() == [12 + n for n in (9, 10, 11, 0, 1, 2, 6, 7, 8)]
    assert batch.labels["labels"].tolist() == [1, 0, 1]
    for mode in (False, True):
        model.train(mode)
        found = []
        for given in ({**batch.inputs, **batch.labels, "num_choices": 3}, padded(batch, 3)):
            if "num_choices" not in given:
                given["example_ids"] = batch.example_ids.view(3, 3)
            seeds.restart(5)
            found.append(model(**given))
        assert found[0].logits.shape == (3, 3)
        assert torch.equal(found[0].logits, found[1].logits)
        assert torch.equal(found[0].loss, found[1].loss)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "num_choices: expected how many choices a packed example has, got None"),
        ({"num_choices": 0}, "got 0"),
        ({"num_choices": True}, "got True"),
        ({"num_choices": 4}, r"a multiple of 4 sequences \(num_choices\), got those of 3"),
    ],
)
def test_wrong_numbers(kind_of, model, given, said):
    kind = kind_of("choice", labels=("0", "1", "2"))
    sequences = kind.encode([("a", ["b", "c", "d"])])
    batch = Supervised(kind, sequences).batch([Piece(0, np.array([0]))])
    with pytest.raises(ArgumentError, match=said):
        model(**batch.inputs, **given)


@pytest.mark.parametrize(
    "item", ["a", ("a", "bc"), ("a", ["b"]), ("a", ["b", 3]), (1, ["b", "c"]), ("a", 7)]
)
def test_wrong_choices(kind_of, item):
    kind = kind_of("choice", labels=("0", "1"))
    with pytest.raises(ArgumentError, match=r"texts\[1\]: expected \(text, 2 choices\)"):
        kind.encode([("a", ["b", "c"]), item])


def test_long_choices_lose_their_end(kind_of, tokenizer):
    kind = kind_of("choice", labels=("0", "1"), max_length=10)
    sequences = kind.encode([("a " * 9, ["b", "c " * 9]), ("a", ["b", "c"])])
    cls, sep = tokenizer.cls_sep
    (a, b, c) = (ids[0] for ids in tokenizer.ids(["a", "b", "c"]))
    assert sequences.tokens[:20].tolist() == [
        *(cls, *[a] * 6, sep, b, sep),
        *(cls, *[a] * 4, sep, *[c] * 3, sep),
    ]
    assert sequences.cut == 1


def test_answers(kind_of):
    kind = kind_of("choice", labels=("0", "1"))
    (found,) = kind.answers([("a", ["b", "c"])], np.array([[0.0, np.log(3)]]))
    assert found[:2] == (1, "c")
    assert [round(share, 12) for share in found.probabilities] == [0.25, 0.75]
