"""transformers' pipelines: the same answers with our classes, and after `bertfast.optimize(pipeline)`."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import pipeline
from transformers.pipelines import SUPPORTED_TASKS

import bertfast
from harness import near
from models.ecosystem import checkpoint, exact_pipeline, same_answers, tiny_tokenizer

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
            exact, want = (
                [made(text)[0] for text in texts] for made in (exact_pipeline(answer), answer)
            )
        else:
            exact, want = (
                run(made, texts, call, batch_size) for made in (exact_pipeline(answer), answer)
            )

        def check(made):
            got = run(made, texts, call, batch_size)
            if task == "feature-extraction" and batch_size > 1:
                got = [rows[0][: len(right)] for rows, right in zip(got, want, strict=True)]
            same_answers(got, want, exact)

        with way("fused"):
            check(own)
        assert bertfast.optimize(answer).switched
        with way("fused"):
            check(answer)
        bertfast.restore(answer)
        check(answer)


@pytest.mark.tool("transformers pipelines", "AutoModel classes that know bertfast's")
def test_auto_classes(tmp_path, way, monkeypatch):
    """A pipeline by the name of a folder takes our class where it is registered for BertConfig."""
    kind = transformers.AutoModelForMaskedLM
    mapping = kind._model_mapping
    monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    folder = str(checkpoint("BertForMaskedLM", tmp_path))
    theirs = pipeline("fill-mask", folder, device="cpu")
    want, exact = theirs(MASKED), exact_pipeline(theirs)(MASKED)
    kind.register(transformers.BertConfig, bertfast.BertForMaskedLM, exist_ok=True)
    answer = pipeline("fill-mask", folder, device="cpu")
    assert type(answer.model) is bertfast.BertForMaskedLM
    with way("fused"):
        same_answers(answer(MASKED), want, exact)


@pytest.mark.tool("transformers pipelines", "bf16 weights: every word's probability")
def test_bf16(tmp_path, way):
    folder = str(checkpoint("BertForMaskedLM", tmp_path))
    found = []
    for kind in (transformers.BertForMaskedLM, bertfast.BertForMaskedLM):
        model = kind.from_pretrained(folder, dtype=torch.bfloat16)
        answer = pipeline("fill-mask", model, tokenizer=tiny_tokenizer(tmp_path), device="cpu")
        if not found:
            found.append(probabilities(exact_pipeline(answer)))
        with way("fused") if len(found) == 2 else torch.no_grad():
            found.append(probabilities(answer))
    exact, eager, got = found
    near("probabilities", got, exact, eager, rounded=torch.bfloat16)


def probabilities(answer) -> torch.Tensor:
    """Of all words for the first mask, in the order of their indices."""
    found = answer(MASKED[0], top_k=answer.model.config.vocab_size)
    found = sorted(found, key=lambda word: word["token"])
    return torch.tensor([word["score"] for word in found])
