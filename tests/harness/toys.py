"""Toy data of every task, a tiny model, and the recipe that goes with both."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

import bertfast
from bertfast.training.finetuning import FineTuning

from . import seeds

NAMES, TOWNS = ("anna", "berta", "carl", "dora"), ("paris", "london", "rome", "oslo")
_WORDS = (
    *("i", "live", "in", "my", "home", "is", "where", "did", "go", "went", "to", "by", "train"),
    *("who", "wrote", "it", "was", "a", "long", "day", "nothing", "else", "happened", "very"),
    *("good", "bad", "film", "smith", "then", "the", "answer", "text", "score"),
)
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(*NAMES, *TOWNS, *_WORDS, ".", ",", "?", "'", "-", *_CHARACTERS),
    *(f"##{c}" for c in _CHARACTERS),
    *"北京我爱住在哪里天安门",
)
CONFIG = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
TWELVE = {"epochs": 3, "share": 0.2, "micro_tokens": 60}  # steps, of parts; an epoch has 4
SETTINGS: dict[str, Any] = {"epochs": 2, "batch": 8, "learning_rate": 2e-3, "log_every": 2}


def make_checkpoint(folder: Path, **changes: Any) -> Path:
    """A new model of these words, with the heads of pretraining."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizers.BertWordPieceTokenizer(numbered, lowercase=True).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    torch.manual_seed(seeds.seed(1))
    model = bertfast.BertForPreTraining(bertfast.BertConfig(**{**CONFIG, **changes}))
    model.save_pretrained(folder)
    return folder


def write_examples(folder: Path, task: str, count: int = 40, number: int = 0) -> Path:
    """A file of a task: single.csv, pair.tsv, regression.csv, choice.jsonl, tokens.conll or qa.json."""
    draw = np.random.default_rng(seeds.seed(number))
    folder.mkdir(parents=True, exist_ok=True)
    return _WRITERS[task](folder, count, draw)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table with a header: csv, or tsv by the name."""
    with open(path, "w", encoding="utf-8", newline="") as handle:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object of JSON a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(task: str, train: Path, model: Path, **changes: Any) -> FineTuning:
    """2 epochs of batches of 8."""
    given = {"task": task, "train": str(train), "model": str(model), **SETTINGS, **changes}
    return FineTuning(**given)


def _single(folder: Path, count: int, draw: Any) -> Path:
    rows = []
    for _ in range(count):
        label = draw.choice(["good", "bad", "long"])
        more = " ".join(draw.choice(_WORDS[:20], draw.integers(1, 8)))
        rows.append({"text": f"a {label} film , {more}", "label": label})
    return write_rows(folder / "single.csv", rows)


def _pair(folder: Path, count: int, draw: Any) -> Path:
    rows = []
    for _ in range(count):
        a, b = draw.choice(TOWNS, 2)
        right = draw.random() < 0.5
        second = f"My home is {a} ." if right else f"A long day in {b}"
        label = "yes" if right else "no"
        rows.append({"text": f"I live in {a}", "text_pair": second, "label": label})
    return write_rows(folder / "pair.tsv", rows)


def _regression(folder: Path, count: int, draw: Any) -> Path:
    numbers = draw.integers(0, 9, count)
    rows = [{"text": f"{'very ' * n}good", "label": f"{n / 8}"} for n in numbers]
    return write_rows(folder / "regression.csv", rows)


def _choice(folder: Path, count: int, draw: Any) -> Path:
    rows = []
    for _ in range(count):
        towns = draw.permutation(TOWNS)[:3].tolist()
        label = int(draw.integers(3))
        choices = [f"home is {town}" for town in towns]
        rows.append({"text": f"i live in {towns[label]}", "choices": choices, "label": label})
    return write_lines(folder / "choice.jsonl", rows)


def _tokens(folder: Path, count: int, draw: Any) -> Path:
    path = folder / "tokens.conll"
    with open(path, "w") as handle:
        for _ in range(count):
            words = f"Then {draw.choice(NAMES)} Smith went to {draw.choice(TOWNS)} .".split()
            tags = ["O", "B-PER", "I-PER", "O", "O", "B-LOC", "O"]
            some = int(draw.integers(0, 3))  # lengths differ
            handle.writelines(f"{w} {t}\n" for w, t in zip(words[some:], tags[some:], strict=True))
            handle.write("\n")
    return path


def _qa(folder: Path, count: int, draw: Any) -> Path:
    """Half of the questions have no answer; some contexts need windows."""
    paragraphs = []
    for number in range(count // 2):
        name, town = draw.choice(NAMES), draw.choice(TOWNS)
        tail = " Nothing else happened ." * int(draw.choice([0, 1, 6]))
        context = f"It was a long day . {name.title()} went to {town.title()} by train .{tail}"
        start = context.index(town.title())
        there = [{"text": town.title(), "answer_start": start}]
        asked = [
            {"id": f"{number}a", "question": f"Where did {name} go ?", "answers": there},
            {"id": f"{number}b", "question": "Who wrote it ?", "answers": []},
        ]
        asked[1]["is_impossible"] = True
        title = f"t{number}"
        paragraphs.append({"title": title, "paragraphs": [{"context": context, "qas": asked}]})
    path = folder / "qa.json"
    path.write_text(json.dumps({"version": "v2.0", "data": paragraphs}))
    return path


_WRITERS = {
    "single": _single,
    "pair": _pair,
    "regression": _regression,
    "choice": _choice,
    "tokens": _tokens,
    "qa": _qa,
}
TASKS = tuple(_WRITERS)
