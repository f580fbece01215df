"""A tiny model, its tokenizer, and kinds of tasks with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bertfast.tasks.form import Form
from bertfast.tasks.kinds import KINDS, Kind
from bertfast.text.tokenizer import Tokenizer
from harness import toys


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return toys.make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def tokenizer(checkpoint) -> Tokenizer:
    return Tokenizer.from_folder(checkpoint)


@pytest.fixture
def kind_of(tokenizer):
    def make(task: str, **fields: Any) -> Kind:
        return KINDS[task](Form(task, **fields), tokenizer)

    return make
