"""Stores: a small one of a real text's making, and a large one of uniform tokens for statistics."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertfast.data import readers
from bertfast.data.prepare import prepare
from bertfast.data.store import Store
from bertfast.data.vocabulary import train_vocabulary
from harness.minilm import MINILM
from harness.stores import documents, uniform_documents, write_store


@pytest.fixture(scope="session")
def minilm() -> Path:
    return MINILM


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A text file of 60 documents."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents(60)) + "\n")
    return path


@pytest.fixture
def small_slices(monkeypatch):
    """Slices of 2000 bytes, so that a small corpus has several shards."""
    monkeypatch.setattr(readers, "SLICE", 2000)


@pytest.fixture(scope="session")
def store(corpus, tmp_path_factory) -> Store:
    """The corpus in several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "SLICE", 2000)
        return prepare([corpus], tmp_path_factory.mktemp("store"), tokenizer=MINILM)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A tokenizer of about 300 tokens, 20 of them unused."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(lambda: documents(200, 1), folder, size=300, unused=20)
    return folder


@pytest.fixture(scope="session")
def large(tokenizer_folder, tmp_path_factory) -> Store:
    """About 2 million tokens in three shards."""
    parts = [uniform_documents(tokenizer_folder, 1000, number) for number in (2, 3, 4)]
    return write_store(tmp_path_factory.mktemp("large"), tokenizer_folder, parts)
