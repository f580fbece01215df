"""`bertfast evaluate` and what stands behind it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

import bertfast
from bertfast.cli import main
from bertfast.data.parts import documents_of
from bertfast.errors import ArgumentError, CheckpointError, StoreError
from bertfast.models.pretraining import load_pretrained
from bertfast.tasks import evaluation
from bertfast.tasks.baselines import count, pairs_of
from bertfast.tasks.evaluation import evaluate
from bertfast.tasks.pretraining import Pretraining
from bertfast.training.evaluation import evaluate as measure
from bertfast.training.evaluation import some
from bertfast.training.processes import Processes
from harness.minilm import MINILM
from tasks.conftest import save

ROUNDINGS = 64 * torch.finfo(torch.float64).eps
SMALL = {"length": 32, "held_out": 0.3}


def run(*arguments: object):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.fixture
def unigram(store, config) -> torch.nn.Module:
    """A model that knows how often each token is in the training part, and says of all pairs that they follow."""
    model = bertfast.BertForPreTraining(config).double()
    counts = count(store, documents_of(store, SMALL["held_out"], "train"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.cls.predictions.bias.copy_(torch.from_numpy(counts.tokens + 1.0).log())
        model.cls.seq_relationship.bias.copy_(torch.tensor([1.0, 0.0]))
    return model.train()  # to be put into eval mode


def test_a_model_of_frequencies_is_the_unigram_baseline(unigram, store):
    found = evaluate(unigram, store, **SMALL)
    own, baseline = found.masked_lm["model"], found.masked_lm["unigram"]
    # the loss of pairs, which is subtracted from that of both, has fp32's roundings
    assert abs(own.loss - baseline.loss) <= 2 * torch.finfo(torch.float32).eps * baseline.loss
    assert own.accuracy == baseline.accuracy
    assert 0 < own.accuracy.value < 1
    assert own.perplexity == math.exp(own.loss)
    task = Pretraining(store, seed=evaluation.SEED, part="held-out", **SMALL)
    assert found.examples == task.examples(0) < 2000
    assert found.labels == task.labels(0).sum()
    assert found.documents == len(documents_of(store, SMALL["held_out"], "held-out"))
    follow = found.examples // 2 / found.examples
    assert [pairs["model"].value for pairs in found.next_sentence.values()] == [follow] * 2


def test_bag_of_words_tells_subjects_apart(unigram, store):
    pairs = evaluate(unigram, store, **SMALL).next_sentence
    easy, hard = (pairs[kind]["bag of words"] for kind in ("easy", "hard"))
    assert easy.low > 0.7
    assert hard.high < easy.low


def test_thresholds_are_those_of_training_pairs(model, store, monkeypatch):
    """Of as many, easy or hard as the pairs that are told apart."""
    seen = []
    monkeypatch.setattr(evaluation, "_told_apart", lambda _, *parts: seen.append(parts) or {})
    evaluate(model, store, examples=50, **SMALL)
    for (fit, held), hard in zip(seen, (0, 1), strict=True):
        for found, seed, part in (
            (fit, evaluation._FIT_SEED, "train"),
            (held, evaluation.SEED, "held-out"),
        ):
            task = Pretraining(store, seed=seed, part=part, hard=hard, **SMALL)
            expected = pairs_of(task.collate(some(task, 50).indices, 0))
            assert all(map(np.array_equal, found[0].first, expected.first))
            assert all(map(np.array_equal, found[0].second, expected.second))


def test_same_masks_and_pairs_every_time(model, store):
    found = evaluate(model, store, examples=50, **SMALL)
    torch.manual_seed(torch.initial_seed() + 1)
    assert evaluate(model, store, examples=50, **SMALL) == found
    assert found.examples == 50
    for kind, hard in evaluation.HARD.items():
        task = Pretraining(store, seed=evaluation.SEED, part="held-out", hard=hard, **SMALL)
        expected = measure(task, model, 50, Processes("cpu"))["next_sentence_accuracy"]
        assert found.next_sentence[kind]["model"].value == expected


def test_examples_come_from_all_over_the_documents(store):
    task = Pretraining(store, seed=1, length=32)
    total, (epoch, indices) = task.examples(0), some(task, 100)
    assert (epoch, len(indices)) == (0, 100)
    assert (np.diff(indices) > 0).all()
    assert indices[0] < 0.1 * total
    assert indices[-1] > 0.9 * total
    assert (some(task, 10 * total).indices == np.arange(total)).all()


def test_command(folder, store, tmp_path):
    """The table, the same figures as JSON, and the cosine of a sentence encoder."""
    output = tmp_path / "found.json"
    options = ("--held-out", 0.3, "--length", 32, "--examples", 24)
    done = run(folder, store.folder, *options, "--embedder", str(MINILM), "--json", output)
    assert done.exit_code == 0, done.output
    found = json.loads(output.read_text())
    assert found["store"] == store.fingerprint
    assert f"{found['documents']} held-out documents (0.3 of all)" in done.output
    assert f"24 examples of up to 32 tokens, {found['labels']} masked words" in done.output
    rows = {line.split("  ")[0]: line for line in done.output.splitlines()}
    assert f"{found['masked_lm']['unigram']['loss']:.4f}" in rows["unigram"]
    for kind in ("easy", "hard"):
        cosine = found["next_sentence"][kind]["embedder"]
        cells = f"{cosine['value']:.1%} {cosine['low']:.1%} to {cosine['high']:.1%}"
        assert cells in " ".join(rows["cosine, model"].split())


def test_masked_words_alone_on_all_documents(config, store, tmp_path):
    folder = save(bertfast.BertForMaskedLM(config), store, tmp_path / "model")
    done = run(folder, store.folder, "--held-out", 0, "--length", 32, "--examples", 24)
    assert done.exit_code == 0, done.output
    assert "120 documents, all of the store: none is held out" in done.output
    assert "next sentences: left out, the model has no such head" in done.output
    assert "bag of words" not in done.output


def test_heads_are_those_of_the_weights(folder, config, store, tmp_path):
    assert type(load_pretrained(folder)) is bertfast.BertForPreTraining
    alone = save(bertfast.BertForMaskedLM(config), store, tmp_path / "words")
    assert type(load_pretrained(alone, "float64")) is bertfast.BertForMaskedLM
    bare = save(bertfast.BertModel(config), store, tmp_path / "bare")
    with pytest.raises(CheckpointError, match="bare: expected a checkpoint with a masked-"):
        load_pretrained(bare)


def test_another_vocabulary_is_refused(folder, store, config):
    words = (folder / "tokenizer.json").read_text().replace('"dog"', '"cat"')
    (folder / "tokenizer.json").write_text(words)
    done = run(folder, store.folder)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "made with another vocabulary than" in done.output
    config.vocab_size -= 1
    with pytest.raises(StoreError, match=f"has {config.vocab_size}. Run bertfast"):
        evaluate(bertfast.BertForMaskedLM(config), store)


def test_what_is_refused(model, store, config):
    with pytest.raises(ArgumentError, match="length: expected at most 64, the model's pos"):
        evaluate(model, store, length=65)
    with pytest.raises(ArgumentError, match="held_out: expected a share that holds out two"):
        evaluate(model, store, length=32, held_out=0.01)  # 1 of 120
    with pytest.raises(ArgumentError, match="examples: expected an integer at least 1"):
        evaluate(model, store, length=32, examples=0)
    with pytest.raises(ArgumentError, match="model: expected bertfast's BertForPreTraining or"):
        evaluate(transformers.BertForPreTraining(config), store)
