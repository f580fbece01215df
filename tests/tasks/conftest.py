"""A store whose documents have subjects, and a tiny model of its vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bertfast
from bertfast.data import shards
from bertfast.data.store import Store
from bertfast.data.vocabulary import train_vocabulary
from bertfast.models.pretraining import save_model
from harness import seeds
from harness.stores import documents, drawn_documents, ordinary_tokens, write_store


def subjects(tokenizer: Path, count: int, number: int) -> shards.Documents:
    """Documents of 8 to 15 sentences of 4 to 8 tokens, 4 of 5 from 8 that the document has for itself."""
    draw, ordinary = np.random.default_rng(seeds.seed(number)), ordinary_tokens(tokenizer)
    tokens, lengths, sentences = drawn_documents(draw, ordinary, count, (8, 16), (4, 9))
    document = np.repeat(np.repeat(np.arange(count), sentences), lengths)
    own = np.stack([draw.choice(ordinary, 8, replace=False) for _ in range(count)])
    subject = own[document, draw.integers(0, 8, len(tokens))]
    tokens = np.where(draw.random(len(tokens)) < 0.2, tokens, subject)
    return shards.Documents(tokens, np.ones(len(tokens), dtype=bool), lengths, sentences)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    """Three shards of 40 documents."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(lambda: documents(200, 1), tokenizer, size=300, unused=20)  # of 109
    parts = [subjects(tokenizer, 40, number) for number in (2, 3, 4)]
    return write_store(tmp_path_factory.mktemp("store"), tokenizer, parts)


@pytest.fixture
def config(store) -> bertfast.BertConfig:
    return bertfast.BertConfig(
        vocab_size=store.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
    )


@pytest.fixture
def model(config) -> torch.nn.Module:
    return bertfast.BertForPreTraining(config)


@pytest.fixture
def folder(model, store, tmp_path) -> Path:
    """Of a checkpoint with both heads, whose config names one, as the published ones do."""
    model.config.architectures = ["BertForMaskedLM"]
    return save(model, store, tmp_path / "model")


def save(model: torch.nn.Module, store: Store, folder: Path) -> Path:
    save_model(model, model.state_dict(), store.tokenizer_folder, folder)
    return folder
