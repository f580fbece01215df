"""A tiny checkpoint with MiniLM's real vocabulary, and MiniLM itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bertfast import BertConfig, BertModel, Encoder
from harness import seeds
from harness.minilm import MINILM


@pytest.fixture(scope="session")
def minilm() -> Path:
    return MINILM


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """hidden 32, 2 layers, with MiniLM's vocabulary; a plain checkpoint of transformers."""
    folder = tmp_path_factory.mktemp("tiny")
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    seeds.restart()
    BertModel(config).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json"):
        shutil.copy(MINILM / name, folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tiny) -> Encoder:
    return Encoder.from_pretrained(tiny)


@pytest.fixture
def sentence_model(tiny, tmp_path):
    """Makes copies of the tiny checkpoint with files of sentence-transformers: name -> content."""

    def make(files: dict) -> Path:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny, folder)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return make
