"""Small files in the form of the archives behind the paper's figures, of the words of `harness.stores`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bertfast.tasks import glue
from harness import seeds
from harness.stores import WORDS
from tasks.test_glue import FIRST, SECOND, rows_of

_SWAG = ("", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source")
_ENDINGS = tuple(f"ending{i}" for i in range(4))


def texts(number: int) -> Iterator[str]:
    """Sentences of 5 words."""
    draw = np.random.default_rng(seeds.seed(number))
    while True:
        yield " ".join(draw.choice(WORDS, 5))


def write_squad(path: Path, count: int, nulls: bool = False) -> None:
    """Questions for a word of a context; with `nulls` every third one has no answer."""
    paragraphs = []
    for number, context in zip(range(count), texts(count), strict=False):
        word = context.split()[-1]
        answers = [{"text": word, "answer_start": context.rindex(word)}]
        asked = {"id": f"q{number}", "question": "what is clever", "answers": answers}
        if nulls:
            none = number % 3 == 0
            asked |= {"is_impossible": none, "answers": [] if none else answers}
        paragraphs.append({"context": context, "qas": [asked]})
    version = "v2.0" if nulls else "1.1"
    data = [{"title": "Dogs", "paragraphs": paragraphs}]
    path.write_text(json.dumps({"version": version, "data": data}))


def write_glue(folder: Path, name: str, count: int = 36) -> None:
    """All files of a task, with texts that differ."""
    task = glue.TASKS[name]
    labels = ["2.600", "5.000", "1.000"] if task.labels is None else list(task.labels)
    labels = (labels * count)[:count]
    for part, file in task.splits.items():
        path = folder / task.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = texts(count)
        rows = [
            [next(drawn) if cell in (FIRST, SECOND) else cell for cell in row]
            for row in rows_of(name, int(part in task.submission), labels)
        ]
        path.write_text("".join("\t".join(row) + "\n" for row in rows), newline="\n")


def write_swag(path: Path, count: int) -> None:
    """One ending of four begins with "roof"."""
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow((*_SWAG, *_ENDINGS, "label"))
        for number, text in zip(range(count), texts(3), strict=False):
            endings = ["roof, all day." if i == number % 4 else text for i in range(4)]
            row = (number, "lsmdc1", 1, f"{text} He", text, "He", "gold", *endings, number % 4)
            writer.writerow(row)


def write_conll(path: Path, count: int) -> None:
    """Sentences whose dogs are persons, in the shared task's form and its tags (IOB1)."""
    lines = ["-DOCSTART- -X- O O", ""]
    for _, text in zip(range(count), texts(4), strict=False):
        for word in (*text.split(), "dog"):
            tag = "I-PER" if word == "dog" else "I-LOC" if word == "roof" else "O"
            lines.append(f"{word} NN I-NP {tag}")
        lines.append("")
    path.write_text("\n".join(lines))
