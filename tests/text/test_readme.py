"""README and help, tried line by line as they stand: every Python snippet and every command, on small models."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner

import bertfast
from bertfast import BertConfig, FineTuning, finetune
from bertfast.cli import main
from bertfast.data.prepare import prepare
from harness import seeds
from harness.stores import documents

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKED = (
    "encode",
    "fill-mask",
    "demo",
)  # the other commands have tests of their epilogs elsewhere


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def examples(text: str) -> list[str]:
    """The lines with a command, without their comments."""
    lines = (line.partition("  #")[0].strip() for line in text.splitlines())
    return [line for line in lines if re.match(r"bertfast |zcat ", line)]


def commands() -> list[str]:
    found = [line for block in blocks("sh") for line in examples(block)]
    for name in (None, *CHECKED):
        found += examples((main.get_command(None, name) if name else main).epilog)
    found = [line for line in found if "COMMAND" not in line]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory, minilm):
    """A folder with all that the lines name: models and files."""
    folder = tmp_path_factory.mktemp("readme")
    seeds.restart()
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    bertfast.BertForMaskedLM(config).save_pretrained(folder / "MODEL")
    shutil.copy(minilm / "tokenizer.json", folder / "MODEL")
    for name in ("bert-base-uncased", "path/or/hub-id"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / "MODEL")
    (folder / "sentences.txt").write_text("Call me Ishmael.\n明月\n")
    (folder / "reviews.csv").write_text("id,body\n1,good\n2,bad\n")
    books = [json.dumps({"text": text}) + "\n" for text in documents(20)]
    (folder / "books.jsonl").write_text("".join(books))
    prepare([folder / "books.jsonl"], folder / "store", tokenizer=folder / "MODEL")
    phase = {"length": 32, "steps": 2, "batch": 4}
    recipe = {"store": "store", "model": "MODEL", "phases": [phase]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    rows = [f"text {number},{('ham', 'spam')[number % 2]}\n" for number in range(40)]
    (folder / "sms.csv").write_text("text,label\n" + "".join(rows))
    (folder / "new.csv").write_text("text\nwin a free phone now\n")
    sms, model = str(folder / "sms.csv"), str(folder / "MODEL")
    finetune(FineTuning(task="single", train=sms, model=model), folder / "tuned")
    (folder / "pages.jsonl").write_text('{"title": "a page"}\n')
    with gzip.open(folder / "big.txt.gz", "wt") as file:
        file.write("one\ntwo\n")
    script = folder / "bin" / "bertfast"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bertfast "$@"\n')
    script.chmod(0o755)
    return folder


def test_snippets(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    ids = torch.tensor([[101, 1037, 102], [101, 102, 0]])
    names = {"batch": {"input_ids": ids, "attention_mask": (ids > 0).long()}}
    found = blocks("python")
    assert len(found) >= 3
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 32)
    assert names["hidden"].shape == (2, 3, 32)
    assert isinstance(names["model"], transformers.BertModel)


@pytest.mark.parametrize("line", commands())
def test_commands(place, monkeypatch, line):
    monkeypatch.chdir(place)
    monkeypatch.setattr("bertfast.cli.demo._TEXT", place / "sentences.txt")  # a short one
    if line.startswith("bertfast tune") and not torch.cuda.is_available():
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert "expected a CUDA GPU" in result.stderr  # it measures GPUs only
    elif "|" in line:
        path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
        shell = ["bash", "-o", "pipefail", "-c", line]
        subprocess.run(shell, check=True, env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)})
        assert gzip.decompress(Path("vectors.jsonl.gz").read_bytes()).count(b"\n") == 2
    else:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output + result.stderr
