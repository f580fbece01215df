"""Packed batches: the same whoever makes them, and what stands in them."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bertfast.data.masking import Masking, Words, mask
from bertfast.data.store import Store
from bertfast.errors import ArgumentError
from bertfast.tasks.pretraining import Pretraining
from harness import seeds

OPTIONS = {
    "seed": 1 << 40,
    "hard": 0.3,
    "short": 0.1,
    "held_out": 0.1,
    "masking": Masking(whole_words=True, ngram=2),
}


def digest(batches) -> str:
    """SHA-256 of the tensors of batches in their order."""
    found = hashlib.sha256()
    for batch in batches:
        for value in batch:
            found.update(
                value.numpy().tobytes() if isinstance(value, torch.Tensor) else b"%d" % value
            )
    return found.hexdigest()


def sequence(batch, number: int) -> list:
    """What a batch holds of a sequence."""
    start, stop = batch.cu_seqlens[number : number + 2].tolist()
    rows = (batch.input_ids, batch.token_type_ids, batch.labels)
    label, index = batch.next_sentence_label[number], batch.example_ids[number]
    return [*(row[0, start:stop].tolist() for row in rows), label.item(), index.item()]


def test_workers_starts_and_batches_change_nothing(store):
    """Steps made by any number of workers, from any step on, after other epochs; sequences in any batch."""
    task = Pretraining(store, **OPTIONS)
    steps = np.array_split(np.random.default_rng(seeds.seed()).permutation(task.examples(3)), 7)
    whole = digest([task.collate(step, 3) for step in steps])
    for workers in (1, 2, 3):
        tasks = [pickle.loads(pickle.dumps(task)) for _ in range(workers)]
        for number, worker in enumerate(tasks):
            worker.collate([0], number)
        assert digest([tasks[n % workers].collate(s, 3) for n, s in enumerate(steps)]) == whole
    last = Pretraining(Store.open(store.folder), **OPTIONS)
    assert digest([last.collate(s, 3) for s in steps[5:]]) == digest(
        [task.collate(s, 3) for s in steps[5:]]
    )
    everything = task.collate(np.arange(task.examples(3)), 3)
    for step in steps:
        batch = task.collate(step, 3)
        for place, index in enumerate(step.tolist()):
            assert sequence(batch, place) == sequence(everything, index)


def test_another_process_makes_the_same(store):
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = f"""
import sys
from bertfast.data.store import Store
from bertfast.tasks.pretraining import Pretraining
sys.path[:0] = {path!r}
from test_batches import OPTIONS, digest
print(digest([Pretraining(Store.open({str(store.folder)!r}), **OPTIONS).collate(range(40), 1)]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == digest([Pretraining(store, **OPTIONS).collate(range(40), 1)])


def test_epochs_and_seeds_differ(store):
    task = Pretraining(store, seed=1)
    batches = [task.collate(range(20), 0), task.collate(range(20), 1)]
    batches.append(Pretraining(store, seed=2).collate(range(20), 0))
    assert len({digest([batch]) for batch in batches}) == 3


def test_masks_of_every_release_are_these():
    """A run that is resumed with a later release goes on with the same masks."""
    tokens = np.arange(100, 140)
    special = np.isin(np.arange(40), [0, 11, 12, 39])
    inputs, labels = mask(
        tokens,
        np.array([0, 12, 40]),
        special,
        None,
        words=Words(99, np.arange(1000, 2000)),
        masking=Masking(share=0.25),
        seed=123456789012345,
        epoch=2,
        indices=np.array([7, 1 << 33]),
    )
    assert np.flatnonzero(labels != -100).tolist() == [7, 9, 10, 13, 16, 18, 30, 31, 32, 33]
    assert inputs[labels != -100].tolist() == [107, 109, 1984, 113, 99, 118, 99, 99, 99, 1473]


@pytest.mark.parametrize("pairs", [True, False])
def test_layout(store, pairs):
    task = Pretraining(store, seed=1, next_sentence=pairs, masking=Masking(mask=0, random=0))
    index = np.array([5, 0, 33])
    batch = task.collate(index, 2)
    lengths = task.lengths(2)[index]
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum(lengths)]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == lengths.max()
    assert batch.example_ids.tolist() == (2 * task.examples(2) + index).tolist()
    for tensor in (batch.input_ids, batch.token_type_ids, batch.labels):
        assert tensor.shape == (1, lengths.sum())
        assert tensor.dtype == torch.int64
    spans = task._epoch(2)[0].spans(index)
    if not pairs:
        assert batch.next_sentence_label is None
    for row in range(3):
        start, stop = batch.cu_seqlens[row : row + 2]
        a, b = np.empty(spans.first_length[row], int), np.empty(spans.second_length[row], int)
        store.copy_tokens(spans.first[row : row + 1], [len(a)], a, [0])
        expected, types = [store.cls, *a, store.sep], [0] * (len(a) + 2)
        if pairs:
            store.copy_tokens(spans.second[row : row + 1], [len(b)], b, [0])
            expected += [*b, store.sep]
            types += [1] * (len(b) + 1)
            assert batch.next_sentence_label[row] == int(not spans.follows[row])
        assert batch.input_ids[0, start:stop].tolist() == expected
        assert batch.token_type_ids[0, start:stop].tolist() == types


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 4}, "length: expected 5 to 8192 tokens, got 4"),
        ({"length": 8193}, "length"),
        ({"hard": 1.5}, "hard: expected a share from 0 to 1"),
        ({"short": -0.1}, "short"),
        ({"part": "test"}, "part: expected train or held-out"),
        ({"held_out": 1.0}, "leaves a document for the part train"),
        ({"part": "held-out"}, "leaves a document for the part held-out"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(store, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Pretraining(store, **{"seed": 1, **arguments})


@pytest.mark.parametrize("indices", [[], [-1], [10**6]])
def test_bad_indices(store, indices):
    with pytest.raises(ArgumentError, match="indices: expected one or more from 0 to"):
        Pretraining(store, seed=1).collate(indices, 0)
