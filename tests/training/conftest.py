"""A store of uniform tokens, and recipes of small runs on it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bertfast.data.store import Store
from bertfast.data.vocabulary import train_vocabulary
from bertfast.training.recipe import Recipe
from harness.stores import documents, uniform_documents, write_store
from training.runs import recipe_of


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    """About 60,000 tokens of 300."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(lambda: documents(200, 1), tokenizer, size=300, unused=20)
    parts = [uniform_documents(tokenizer, 40, 2)]
    return write_store(tmp_path_factory.mktemp("store"), tokenizer, parts)


@pytest.fixture
def recipe(store) -> Recipe:
    return recipe_of(store.folder)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.INFO, "bertfast")


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")
