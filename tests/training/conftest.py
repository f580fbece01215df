"""A store of uniform tokens, and recipes of small runs on it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bertfast.data.store import Store
from bertfast.data.vocabulary import train_vocabulary
from bertfast.training.finetuning import finetune
from bertfast.training.recipe import Recipe
from harness import toys
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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return toys.make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def tuned(checkpoint, tmp_path_factory) -> dict[str, Path]:
    """A run of each task."""
    found = {}
    for task in toys.TASKS:
        folder = tmp_path_factory.mktemp(task)
        train = toys.write_examples(folder, task)
        more = {"length": 40, "stride": 12, "group": "title"} if task == "qa" else {}
        recipe = toys.recipe_of(task, train, checkpoint, share=0.2, **more)
        finetune(recipe, folder / "run", say=lambda line: None)
        found[task] = folder / "run"
    return found


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.INFO, "bertfast")


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")
