"""A label for each word, from its first piece; labels of the form B-TYPE and I-TYPE are entities."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...core.heads import IGNORED, fp32
from ...data.labelled.conll import Sentences, read_conll
from ...data.labelled.tables import Table, check_columns, described
from ...data.sequences import Batch, Sequences
from ...errors import ArgumentError, InputFileError
from .. import metrics
from ..form import Form
from ..windows import owners, windows
from .base import Examples, Kind, Targets, as_array, fitted_temperature, table_of

# A Chinese character, a run of letters and digits, or one other sign.
_WORDS = re.compile(
    r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|(?P<run>[^\W\u3400-\u9fff\uf900-\ufaff]+)|[^\w\s]"
)
_JOINER = "\u200d"
_ENTITY = re.compile(r"[BI]-.+")


class Entity(NamedTuple):
    """label: its type. text. start, stop: characters of the text, or words of a list of words. probability: the least
    of its words'."""

    label: str
    text: str
    start: int
    stop: int
    probability: float


class Tagged(NamedTuple):
    """words, and for each its label and that one's probability."""

    words: list[str]
    labels: list[str]
    probabilities: list[float]


class Word(NamedTuple):
    """Where the first piece of each word is: sequence (of the example) and position in it, int64 [words]; -1 of a word
    without pieces."""

    sequence: np.ndarray
    position: np.ndarray


class Tokens(Kind):
    """The task tokens. An input is a list of words, or a text, whose words are taken apart at blanks and signs."""

    head = "BertForTokenClassification"

    @staticmethod
    def open(form: Form, path: str, part: str) -> Sentences | Table:
        named = form.columns
        if _is_table(named.kind, path, part):
            return table_of(form, path, part, named.text)
        return read_conll(path, named.word, named.tag)

    @staticmethod
    def learn(form: Form, opened: Sentences | Table) -> Form:
        """All tags of the file, O first; IOB1 and IOB2 become IOB2."""
        found = {tag for row in _read(form, opened, True)[1] for tag in row}
        if len(found) < 2:
            raise InputFileError(
                f"{opened.name}: expected at least two labels, got only {', '.join(found)}. There is nothing to learn "
                "from one class."
            )
        kinds = {tag[2:] for tag in found if _ENTITY.fullmatch(tag)}
        if _has_entities(found):  # both tags of every type
            found = {"O"} | {f"{mark}-{kind}" for kind in kinds for mark in "BI"}
        return replace(form, labels=tuple(sorted(found, key=lambda tag: (tag != "O", tag))))

    @staticmethod
    def examples(form: Form, opened: Sentences | Table, labelled: bool) -> Examples:
        words, tags, places = _read(form, opened, labelled)
        if tags is not None:
            known = {label: number for number, label in enumerate(form.labels)}
            tags = [
                [_number(known, tag, place) for tag in row]
                for row, place in zip(tags, places, strict=True)
            ]
        return Examples(words, tags, [str(i) for i in range(len(words))])

    @property
    def has_entities(self) -> bool:
        return _has_entities(self.form.labels)

    def encode(self, inputs: Sequence[str | Sequence[str]]) -> Sequences:
        sentences = [words_of(item, index)[0] for index, item in enumerate(inputs)]
        encodings = self.tokenizer.encodings(sentences, words=True)
        rows, owner, details, cut = [], [], [], 0
        room = self.form.max_length - 2
        step = self.form.stride or max(room // 2, 1)
        for example, (words, encoding) in enumerate(zip(sentences, encodings, strict=True)):
            ids = encoding.ids
            found = windows(0, len(ids), max_length=room + 3, stride=step)
            if self.form.long == "truncate":
                cut += len(ids) > room
                found = found._replace(starts=found.starts[:1], lengths=found.lengths[:1])
            for start in found.starts:
                part = [self.cls, *ids[start : start + room], self.sep]
                rows.append((part, [0] * len(part)))
                owner.append(example)
            details.append(_places(encoding.word_ids, len(words), found))
        return Sequences(rows, owner, details, cut)

    def targets(self, gold: Sequence[Sequence[int]], sequences: Sequences) -> Targets:
        labels = np.full(len(sequences.tokens), IGNORED, dtype=np.int64)
        first = np.searchsorted(sequences.owner, np.arange(len(gold)))
        for example, (numbers, word) in enumerate(zip(gold, sequences.details, strict=True)):
            there = word.sequence >= 0
            place = sequences.starts[first[example] + word.sequence[there]] + word.position[there]
            labels[place] = np.asarray(numbers)[there]
        items = np.add.reduceat((labels != IGNORED).astype(np.float64), sequences.starts[:-1])
        return Targets({}, {"labels": labels}, items)

    def right(self, output: Any, batch: Batch) -> tuple[Tensor, int]:
        labels = batch.labels["labels"][0]
        real = labels != IGNORED
        return (output.logits[0].argmax(1) == labels)[real].sum(), int(real.sum())

    def outputs(self, output: Any, batch: Batch) -> list[np.ndarray]:
        logits = as_array(fp32(output.logits[0]))
        return np.split(logits, batch.cu_seqlens[1:-1].tolist())

    def gather(self, sequences: Sequences, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of each example the logits of its words [words, labels]; NaN of a word that the model did not see."""
        first = np.searchsorted(sequences.owner, np.arange(len(sequences.details)))
        found = []
        for start, word in zip(first, sequences.details, strict=True):
            logits = np.full((len(word.sequence), len(self.labels)), np.nan)
            for index in np.flatnonzero(word.sequence >= 0):
                logits[index] = outputs[start + word.sequence[index]][word.position[index]]
            found.append(logits)
        return found

    def tuned(self, gold: Sequence[Sequence[int]], found: Sequence[np.ndarray]) -> Form:
        logits, labels = np.concatenate(found), np.concatenate([np.asarray(row) for row in gold])
        seen = ~np.isnan(logits[:, 0])
        temperature = fitted_temperature(logits[seen], labels[seen])
        return replace(self.form, temperature=temperature)

    def scores(
        self, gold: Sequence[Sequence[int]], found: Sequence[np.ndarray]
    ) -> dict[str, float]:
        told = [self._numbers(logits) for logits in found]
        flat = [np.concatenate([np.asarray(row) for row in rows]) for rows in (gold, told)]
        accuracy = metrics.accuracy(*flat)
        if not self.has_entities:
            return {"accuracy": accuracy, "macro_f1": metrics.macro_f1(*flat)}
        named = [[[self.labels[i] for i in row] for row in rows] for rows in (gold, told)]
        scores = {}
        for mode, name in (("conlleval", "entity_f1"), ("strict", "strict_entity_f1")):
            scores[name] = metrics.entity_scores(*named, mode)[0].f1
        whole = metrics.entity_scores(*named)[0]
        return {
            **scores,
            "precision": whole.precision,
            "recall": whole.recall,
            "accuracy": accuracy,
        }

    def answers(
        self, inputs: Sequence[Any], found: Sequence[np.ndarray]
    ) -> list[list[Entity] | Tagged]:
        told = []
        for index, (item, logits) in enumerate(zip(inputs, found, strict=True)):
            words, places = words_of(item, index)
            tagged = self._tagged(words, logits)
            told.append(self._entities(item, places, tagged) if self.has_entities else tagged)
        return told

    def tags(self, inputs: Sequence[Any], found: Sequence[np.ndarray]) -> list[Tagged]:
        """The label of every word, entities or not."""
        pairs = enumerate(zip(inputs, found, strict=True))
        return [self._tagged(words_of(item, index)[0], logits) for index, (item, logits) in pairs]

    def _numbers(self, logits: np.ndarray) -> np.ndarray:
        """The likeliest labels; the first one, which is O where there is one, of words that were not seen."""
        return np.nan_to_num(logits, nan=0.0).argmax(1) if len(logits) else np.zeros(0, np.int64)

    def _tagged(self, words: list[str], logits: np.ndarray) -> Tagged:
        numbers = self._numbers(logits)
        shares = metrics.probabilities(np.nan_to_num(logits, nan=0.0), self.form.temperature)
        sure = shares[np.arange(len(numbers)), numbers]
        return Tagged(words, [self.labels[i] for i in numbers], sure.tolist())

    def _entities(self, item: Any, places: np.ndarray, tagged: Tagged) -> list[Entity]:
        found = []
        for label, start, stop in metrics.spans(tagged.labels):
            sure = min(tagged.probabilities[start:stop])
            if isinstance(item, str):
                begin, end = int(places[start, 0]), int(places[stop - 1, 1])
                found.append(Entity(label, item[begin:end], begin, end, sure))
            else:
                found.append(Entity(label, " ".join(tagged.words[start:stop]), start, stop, sure))
        return found


def words_of(item: str | Sequence[str], index: int = 0) -> tuple[list[str], np.ndarray]:
    """The words of a text or list, and the characters where each starts and ends: int64 [words, 2]."""
    if isinstance(item, str):
        places = _word_places(item)
        return [item[a:b] for a, b in places], np.array(places, dtype=np.int64).reshape(-1, 2)
    words = list(item) if isinstance(item, list | tuple) else [item]
    if not all(isinstance(word, str) for word in words):
        raise ArgumentError(f"texts[{index}]", "a text or a list of words", f"{item!r:.60}")
    ends = np.arange(len(words), dtype=np.int64)
    return words, np.stack([ends, ends + 1], 1)


def _word_places(text: str) -> list[tuple[int, int]]:
    """Where each word starts and stops. Accents and vowel signs that are characters of their own, and what a joiner
    joins, belong to the word before."""
    found: list[tuple[int, int]] = []
    run = False  # the last word is one of letters
    for match in _WORDS.finditer(text):
        start, stop = match.span()
        letters = match["run"] is not None
        mark = _is_mark(text[start]) or text[start] == _JOINER
        if found and found[-1][1] == start:
            before = text[start - 1]
            joined = before == _JOINER or (run and letters and _is_mark(before))
            if mark or joined:
                found[-1] = found[-1][0], stop
                continue
        found.append((start, stop))
        run = letters
    return found


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _places(word_ids: Sequence[int | None], count: int, found: Any) -> Word:
    """Where each word's first piece is, in the window in which it has the most context."""
    ids = np.array([-1 if word is None else word for word in word_ids], dtype=np.int64)
    first = np.full(count, -1, dtype=np.int64)
    first[ids[::-1]] = np.arange(len(ids))[::-1]  # of equal ones the first is written last
    seen = int((found.starts + found.lengths).max())
    first[first >= seen] = -1  # cut off
    sequence = np.full(count, -1, dtype=np.int64)
    there = first >= 0
    if seen:
        sequence[there] = owners(found)[first[there]]
    position = np.where(there, first - found.starts[np.maximum(sequence, 0)] + 1, -1)
    return Word(sequence, position)


def _is_table(kind: str | None, path: str, part: str) -> bool:
    """Else it is CoNLL. What is asked about may also be texts in a csv or tsv file, which hold no lists of labels."""
    kinds, ends = ("jsonl", "datasets"), (".jsonl", ".ndjson")
    if part == "test":
        kinds, ends = (*kinds, "csv", "tsv"), (*ends, ".csv", ".tsv")
    return kind in kinds if kind else os.path.isdir(path) or path.endswith(ends)


def _read(
    form: Form, opened: Sentences | Table, labelled: bool
) -> tuple[list[list[str]], list[list[str]] | None, list[str]]:
    """(words, tags, where each sentence stands); tags of entities as IOB2."""
    if isinstance(opened, Sentences):
        words, tags = opened.words, opened.tags if labelled else None
        places = [f"{opened.name}, line {number}" for number in opened.numbers]
    else:
        words = _lists(opened, form.columns.text, texts=not labelled)
        tags = _lists(opened, form.columns.label) if labelled else None
        places = [opened.place(index) for index in range(len(words))]
        for row, some, place in zip(words, tags or words, places, strict=True):
            if len(row) != len(some):
                raise InputFileError(f"{place}: expected {len(row)} labels, got {len(some)}.")
    if tags is not None and _has_entities({tag for row in tags for tag in row}):
        tags = [metrics.tags_of(metrics.spans(row), len(row)) for row in tags]
    return words, tags, places


def _has_entities(tags: Any) -> bool:
    return "O" in tags and all(tag == "O" or _ENTITY.fullmatch(tag) for tag in tags)


def _lists(table: Table, column: str, texts: bool = False) -> list[Any]:
    """Lists of strings; with `texts` a row may be a text, too."""
    check_columns(table.name, [column], list(table.columns))
    found = table.columns[column]
    for index, value in enumerate(found):
        if texts and isinstance(value, str):
            continue
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            got = described(value)
            raise InputFileError(
                f"{table.place(index)}: {column}: expected a list of strings, got {got}."
            )
    return found


def _number(known: dict[str, int], tag: str, place: str) -> int:
    if tag not in known:
        names = ", ".join(list(known)[:12])
        raise InputFileError(f"{place}: expected a label of {names}, got {tag!r}.")
    return known[tag]
