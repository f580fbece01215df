"""Inside sentence-transformers: bertfast's model in the place of transformers' gives the same vectors."""

from __future__ import annotations

import pytest

from bertfast import BertModel

TEXTS = [
    "A man is eating food.",
    "Someone reads the newspaper in a park, slowly, while it rains and nobody else is there.",
    "ok",
    "",
    "敏捷的棕毛狐狸",
]


def put(module, model) -> None:
    """Before version 6 `auto_model` holds the model; since then it is a read-only name of `model`."""
    module.auto_model = model
    if module.auto_model is not model:
        del module._modules["auto_model"]
        module.model = model


def test_encode(minilm, tmp_path, monkeypatch):
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed (extra: test)"
    )
    encoder = library.SentenceTransformer(str(minilm), device="cpu")
    want = encoder.encode(TEXTS)
    ours = BertModel.from_pretrained(minilm)
    put(encoder[0], ours)
    calls = []
    forward = BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    assert abs(encoder.encode(TEXTS) - want).max() < 1e-5
    assert abs(encoder.encode(TEXTS, batch_size=2) - want).max() < 1e-5
    assert len(calls) == 4
    assert encoder.device == ours.device
    encoder.save(str(tmp_path))
    again = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert type(again[0].auto_model) is not BertModel
    assert abs(again.encode(TEXTS) - want).max() < 1e-5
