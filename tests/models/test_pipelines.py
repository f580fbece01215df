"""transformers' pipelines: the same answers with our classes, and after `bertfast.optimize(pipeline)`."""

from __future__ import annotations

import numpy
import pytest
import torch
import transformers
from transformers import pipeline
from transformers.pipelines import SUPPORTED_TASKS

import bertfast
from models.ecosystem import TOLERANCE, checkpoint, tiny_tokenizer

TEXTS = ["a man is eating the food", "ok", "the dog, singing in a long night of rain, is no dog?"]
MASKED = ["a man is [MASK] the food", "[MASK] is", "the [MASK] sings in a long night [MASK] rain"]
QUESTIONS = {
    "question": ["who is eating?", "what?"],
    "context": ["a man is eating the food in the park", "the rain"],
}
CASES = {  # task -> (our class, fields of its config, the input, arguments of the call)
    "fill-mask": ("BertForMaskedLM", {}, MASKED, {"top_k": 3}),
    "feature-extraction": ("BertModel", {}, TEXTS, {}),
    "text-classification": ("BertForSequenceClassification", {}, TEXTS, {"top_k": None}),
    "token-classification": ("BertForTokenClassification", {}, TEXTS, {}),
    "question-answering": ("BertForQuestionAnswering", {}, QUESTIONS, {"top_k": 2}),
    "zero-shot-classification": (
        "BertForSequenceClassification",
        {"label2id": {"entailment": 0, "neutral": 1, "contradiction": 2}},
        TEXTS,
        {"candidate_labels": ["a dog", "the rain", "food"]},
    ),
}


def same(got, want) -> None:
    """The same lists, dicts and strings, and numbers that are close."""
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert list(got) == list(want)
        got, want = list(got.values()), list(want.values())
    if isinstance(want, list | tuple):
        assert len(got) == len(want)
        for ours, theirs in zip(got, want, strict=True):
            same(ours, theirs)
    elif isinstance(want, float | numpy.floating):
        assert abs(got - want) <= TOLERANCE * max(1.0, abs(want))
    else:
        assert got == want


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(task, folder with a checkpoint, our class, the input, arguments of the call)."""
    task = request.param
    name, fields, texts, call = CASES[task]
    if task not in SUPPORTED_TASKS:
        pytest.skip(f"transformers {transformers.__version__} has no pipeline {task}")
    labels = {"num_labels": 3} if "Answering" not in name and not fields else {}
    folder = checkpoint(name, tmp_path, **fields, **labels)
    return task, folder, getattr(bertfast, name), texts, call


def run(answer, texts, call, batch_size):
    given = {**texts, **call} if isinstance(texts, dict) else {**call}
    places = () if isinstance(texts, dict) else (texts,)
    return answer(*places, **given, batch_size=batch_size)


@pytest.mark.tool("transformers pipelines", "{case}: one text, ragged batches")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_pipeline(case, batch_size, way):
    """Of our class by from_pretrained; and a live pipeline, optimized and restored."""
    task, folder, kind, texts, call = case
    answer = pipeline(task, str(folder), device="cpu")
    tokenizer = tiny_tokenizer(folder)
    own = pipeline(task, kind.from_pretrained(folder), tokenizer=tokenizer, device="cpu")
    with torch.no_grad():
        if task == "feature-extraction" and batch_size > 1:
            # its rows are as long as the batch: transformers' have numbers at padding
            want = [rows for text in texts for rows in answer(text)]
            check = unpadded
        else:
            want, check = run(answer, texts, call, batch_size), same
        with way("fused"):
            check(run(own, texts, call, batch_size), want)
        assert bertfast.optimize(answer).switched
        with way("fused"):
            check(run(answer, texts, call, batch_size), want)
        bertfast.restore(answer)
        check(run(answer, texts, call, batch_size), want)


def unpadded(got, want) -> None:
    for rows, expected in zip(got, want, strict=True):
        same(rows[0][: len(expected)], expected)


@pytest.mark.tool("transformers pipelines", "AutoModel classes that know bertfast's")
def test_auto_classes(tmp_path, way, monkeypatch):
    """A pipeline by the name of a folder takes our class where it is registered for BertConfig."""
    kind = transformers.AutoModelForMaskedLM
    mapping = kind._model_mapping
    monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    folder = str(checkpoint("BertForMaskedLM", tmp_path))
    want = pipeline("fill-mask", folder, device="cpu")(MASKED)
    kind.register(transformers.BertConfig, bertfast.BertForMaskedLM, exist_ok=True)
    answer = pipeline("fill-mask", folder, device="cpu")
    assert type(answer.model) is bertfast.BertForMaskedLM
    with way("fused"):
        same(answer(MASKED), want)


@pytest.mark.tool("transformers pipelines", "bf16 weights: the same words first")
def test_bf16(tmp_path, way):
    folder = str(checkpoint("BertForMaskedLM", tmp_path))
    answers = []
    for kind in (transformers.BertForMaskedLM, bertfast.BertForMaskedLM):
        model = kind.from_pretrained(folder, dtype=torch.bfloat16)
        answer = pipeline("fill-mask", model, tokenizer=tiny_tokenizer(tmp_path), device="cpu")
        with way("fused") if answers else torch.no_grad():
            answers.append(answer(MASKED[0], top_k=1)[0]["token_str"])
    assert answers[0] == answers[1]
