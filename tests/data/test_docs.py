"""docs/pretraining.md: the data's snippets, run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs/pretraining.md"
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", DOCS.read_text("utf-8"), re.S)


@pytest.mark.parametrize("number", range(2))
def test_snippet(number, store, minilm, tmp_path, monkeypatch, capsys):
    """It runs, and prints what stands below it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(store.folder, "store")
    shutil.copytree(minilm, "MODEL")
    code, printed = BLOCKS[number]
    exec(compile(code, str(DOCS), "exec"), {})
    assert capsys.readouterr().out == printed
