"""Models that transformers saved, and that have no task's file: `bertfast.load` takes them as their config says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

import bertfast
from bertfast.cli import main
from bertfast.errors import ArgumentError, CheckpointError, UnsupportedError
from bertfast.tasks.kinds import Entity
from harness import seeds, toys

pytestmark = pytest.mark.xdist_group("finetuning")


def saved_by_transformers(checkpoint: Path, folder: Path, name: str, **config: Any) -> Any:
    seeds.restart(2)
    made = transformers.BertConfig(**toys.CONFIG, **config)
    model = getattr(transformers, name)(made).eval()
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / file, folder / file)
    return model


def near_by(got: Any, want: list[float]) -> bool:
    """Parity itself is proved in tests/models."""
    return max(abs(a - b) for a, b in zip(got, want, strict=True)) < 1e-5


def logits_of(model: Any, folder: Path, *texts: Any) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(*texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        if isinstance(model, transformers.BertForMultipleChoice):
            given = {name: value[None] for name, value in given.items()}
        return model(**given)


def test_classifiers_of_others(checkpoint, tmp_path):
    model = saved_by_transformers(
        checkpoint,
        tmp_path,
        "BertForSequenceClassification",
        id2label={0: "no", 1: "maybe", 2: "yes"},
    )
    predictor = bertfast.load(tmp_path)
    for asked in ("i live in rome", ("i live", "in rome")):
        found = predictor([asked])[0]
        texts = (asked,) if isinstance(asked, str) else asked
        want = logits_of(model, tmp_path, *texts).logits[0].softmax(0)
        assert list(found.probabilities) == ["no", "maybe", "yes"]
        assert near_by(found.probabilities.values(), want.tolist())
        assert found.probabilities[found.label] == max(found.probabilities.values())


def test_numbers_and_several_labels_of_others(checkpoint, tmp_path):
    model = saved_by_transformers(
        checkpoint, tmp_path / "r", "BertForSequenceClassification", num_labels=1
    )
    want = float(logits_of(model, tmp_path / "r", "i live").logits)
    assert near_by([bertfast.load(tmp_path / "r")("i live")], [want])
    model = saved_by_transformers(
        *(checkpoint, tmp_path / "s", "BertForSequenceClassification"),
        problem_type="multi_label_classification",
    )
    want = logits_of(model, tmp_path / "s", "i live").logits[0].sigmoid().tolist()
    found = bertfast.load(tmp_path / "s")("i live")
    assert near_by(found.probabilities.values(), want)
    assert found.labels == [f"LABEL_{n}" for n, share in enumerate(want) if share > 0.5]


def test_choices_of_others(checkpoint, tmp_path):
    """As many choices as asked; by the command too."""
    model = saved_by_transformers(checkpoint, tmp_path, "BertForMultipleChoice")
    predictor, choices = bertfast.load(tmp_path), ["in rome", "in oslo", "a film", "x"]
    for count in (2, 4):
        found = predictor(("i live", choices[:count]))
        want = logits_of(model, tmp_path, ["i live"] * count, choices[:count]).logits[0].softmax(0)
        assert near_by(found.probabilities, want.tolist())
    path = toys.write_lines(tmp_path / "in.jsonl", [{"text": "i live", "choices": choices}] * 2)
    command = ["predict", str(tmp_path), str(path), "-o", str(tmp_path / "o.jsonl")]
    assert CliRunner().invoke(main, command).exit_code == 0
    told = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in told] == [found.index] * 2
    toys.write_lines(
        path, [{"text": "i", "choices": choices}, {"text": "i", "choices": choices[:2]}]
    )
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "line 2: expected 4 choices, got 2" in result.output
    with pytest.raises(ArgumentError, match=r"texts\[1\]: expected \(text, 4 choices\)"):
        predictor([("i", choices), ("i", choices[:2])])


def test_words_of_others(checkpoint, tmp_path):
    names = dict(enumerate(["O", "B-PER", "I-PER"]))
    model = saved_by_transformers(
        checkpoint, tmp_path, "BertForTokenClassification", id2label=names
    )
    model.classifier.bias.data += torch.tensor([0.0, 0.3, 0.1])
    model.save_pretrained(tmp_path)
    words = ["anna", "went", "to", "oslo"]
    shares = logits_of(model, tmp_path, " ".join(words)).logits[0, 1:-1].softmax(-1)
    predictor = bertfast.load(tmp_path)
    tagged = predictor.kind.tags([words], predictor.found([words]))[0]
    assert tagged.labels == [names[int(i)] for i in shares.argmax(-1)]
    assert near_by(tagged.probabilities, shares.max(-1).values.tolist())
    assert all(isinstance(entity, Entity) for entity in predictor(words)[0])


def test_answers_of_others(checkpoint, tmp_path):
    model = saved_by_transformers(checkpoint, tmp_path, "BertForQuestionAnswering")
    question, context = "where did anna go", "anna went to oslo by train"
    output = logits_of(model, tmp_path, question, context)
    start, end = (side[0, 6:-1].numpy() for side in (output.start_logits, output.end_logits))
    scores = np.triu(start[:, None] + end)
    scores[np.tril_indices(6, -1)] = -np.inf
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    found = bertfast.load(tmp_path)((question, context))
    assert found.text == " ".join(context.split()[first : last + 1])
    assert context[found.start : found.stop] == found.text


def test_models_without_a_task(checkpoint, tmp_path):
    with pytest.raises(UnsupportedError, match="this one is BertForPreTraining. Fine-tune it"):
        bertfast.load(checkpoint)
    masked = tmp_path / "masked"
    saved_by_transformers(checkpoint, masked, "BertForMaskedLM")
    with pytest.raises(UnsupportedError, match="this one is BertForMaskedLM. Fine-tune it"):
        bertfast.load(masked)
    config = json.loads((masked / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (masked / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="it lacks .*Fine-tune the model first"):
        bertfast.load(masked)
