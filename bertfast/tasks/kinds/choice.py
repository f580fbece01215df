"""One of several texts that goes with another, as in SWAG: a score for each pair, compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...core.heads import fp32
from ...data.labelled import columns
from ...data.labelled.tables import Table, check_columns
from ...data.sequences import Batch, Sequences
from ...errors import ArgumentError, InputFileError
from .. import metrics
from ..form import Columns, Form
from .base import Examples, Kind, Targets, as_array, fitted_temperature, table_of
from .classification import joined, shortened


class Chosen(NamedTuple):
    """index: of the likeliest choice, from 0. text: that choice. probability: its own. probabilities: of all."""

    index: int
    text: str
    probability: float
    probabilities: list[float]


class Choice(Kind):
    """The task choice. An input is (text, choices); all examples have equally many."""

    head = "BertForMultipleChoice"

    @property
    def labels(self) -> tuple[str, ...]:
        return ("score",)

    @property
    def group(self) -> int:
        return len(self.form.labels)

    @staticmethod
    def open(form: Form, path: str, part: str) -> Table:
        named = form.columns
        return table_of(form, path, part, named.text, *named.choices, named.prefix)

    @staticmethod
    def learn(form: Form, opened: Table) -> Form:
        count = len(_choices(opened, form.columns)[0])
        return replace(form, labels=tuple(str(i) for i in range(count)))

    @staticmethod
    def examples(form: Form, opened: Table, labelled: bool) -> Examples:
        texts = columns.texts(opened, form.columns.text)
        choices = _choices(opened, form.columns)
        count = len(form.labels) or len(choices[0])  # a model of others does not say
        for index, some in enumerate(choices):
            if len(some) != count:
                raise InputFileError(
                    f"{opened.place(index)}: expected {count} choices, got {len(some)}."
                )
        gold = None
        if labelled:
            gold = columns.label_numbers(opened, form.columns.label, form.labels)
        inputs = list(zip(texts, choices, strict=True))
        return Examples(inputs, gold, [str(number) for number in opened.numbers])

    def encode(self, inputs: Sequence[tuple[str, Sequence[str]]]) -> Sequences:
        for index, item in enumerate(inputs):
            if not is_choice(item) or len(item[1]) != self.group:
                expected = f"(text, {self.group} choices)"
                raise ArgumentError(f"texts[{index}]", expected, f"{item!r:.60}")
        texts = self.tokenizer.ids([text for text, _ in inputs])
        choices = self.tokenizer.ids([choice for _, some in inputs for choice in some])
        room, rows, cut = self.form.max_length - 3, [], set()
        for number, choice in enumerate(choices):
            text = texts[number // self.group]
            first, second = shortened(len(text), len(choice), room)
            if first + second < len(text) + len(choice):
                cut.add(number // self.group)
            rows.append(joined(text[:first], choice[:second], self.cls, self.sep))
        owner = np.arange(len(rows)) // self.group
        return Sequences(rows, owner, cut=len(cut))

    def targets(self, gold: np.ndarray, sequences: Sequences) -> Targets:
        return Targets({"labels": gold}, {}, np.ones(len(gold)))

    def right(self, output: Any, batch: Batch) -> tuple[Tensor, int]:
        labels = batch.labels["labels"]
        return (output.logits.argmax(1) == labels).sum(), len(labels)

    def outputs(self, output: Any, batch: Batch) -> list[np.ndarray]:
        return list(as_array(fp32(output.logits)).reshape(-1))

    def gather(self, sequences: Sequences, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Logits [examples, choices]."""
        return np.array(outputs, dtype=np.float64).reshape(-1, self.group)

    def tuned(self, gold: np.ndarray, found: np.ndarray) -> Form:
        return replace(self.form, temperature=fitted_temperature(found, gold))

    def scores(self, gold: np.ndarray, found: np.ndarray) -> dict[str, float]:
        return {"accuracy": metrics.accuracy(gold, found.argmax(1))}

    def answers(self, inputs: Sequence[Any], found: np.ndarray) -> list[Chosen]:
        shares = metrics.probabilities(found, self.form.temperature)
        best = shares.argmax(1)
        return [
            Chosen(int(i), choices[i], float(row[i]), row.tolist())
            for (_, choices), i, row in zip(inputs, best, shares, strict=True)
        ]


def is_choice(item: Any) -> bool:
    """Whether it is a text and a list of texts."""
    pair = isinstance(item, tuple | list) and len(item) == 2
    if not pair or not isinstance(item[1], tuple | list):
        return False
    return all(isinstance(text, str) for text in (item[0], *item[1]))


def _choices(table: Table, named: Columns) -> list[list[str]]:
    """Of each example, whole: with what all begin with."""
    found = _endings(table, named.choices)
    if named.prefix is None:
        return found
    starts = columns.texts(table, named.prefix, allow_empty=True)
    return [[f"{a} {b}".strip() for b in some] for a, some in zip(starts, found, strict=True)]


def _endings(table: Table, names: Sequence[str]) -> list[list[str]]:
    """A column each, or one column of lists."""
    if len(names) > 1:
        return [list(row) for row in zip(*(columns.texts(table, n) for n in names), strict=True)]
    check_columns(table.name, names, list(table.columns))
    found = table.columns[names[0]]
    for index, value in enumerate(found):
        right = isinstance(value, list) and len(value) > 1
        if not right or not all(isinstance(text, str) and text.strip() for text in value):
            raise InputFileError(
                f"{table.place(index)}: {names[0]}: expected a list of two texts or more. Of a csv file, name a "
                "column for each choice."
            )
    return found
