"""One text or two: a label, several labels, or a number, from the pooled [CLS]."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.heads import fp32
from ...data.labelled import columns
from ...data.labelled.tables import Table
from ...data.sequences import Batch, Sequences
from ...errors import ArgumentError
from .. import glue, metrics
from ..form import Form
from ..windows import windows
from .base import Examples, Kind, Targets, as_array, fitted_temperature, table_of


class Label(NamedTuple):
    """label: the likeliest one. probability: its own. probabilities: of all labels, by name."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Labels(NamedTuple):
    """labels: those of a probability above .5. probabilities: of all labels, by name."""

    labels: list[str]
    probabilities: dict[str, float]


class Classification(Kind):
    """The tasks single, pair and regression."""

    head = "BertForSequenceClassification"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.form.labels or ("score",)

    @property
    def problem(self) -> str:
        if self.form.task == "regression":
            return "regression"
        return f"{'multi' if self.form.several else 'single'}_label_classification"

    # files

    @staticmethod
    def open(form: Form, path: str, part: str) -> Table | glue.Examples:
        if form.glue:
            return glue.read(path, form.glue, part)
        return table_of(form, path, part, form.columns.text, form.columns.text_pair)

    @staticmethod
    def learn(form: Form, opened: Table | glue.Examples) -> Form:
        if form.task == "regression":
            return form
        if form.glue:
            return dataclasses.replace(form, labels=glue.task_of(form.glue).labels)
        if form.several:
            names = columns.set_names(opened, form.columns.label, form.columns.separator)
        else:
            names = columns.label_names(opened, form.columns.label)
        return dataclasses.replace(form, labels=tuple(names))

    @staticmethod
    def examples(form: Form, opened: Table | glue.Examples, labelled: bool) -> Examples:
        if form.glue:
            count = len(opened.texts[0])
            names = opened.index or [str(i) for i in range(count)]
            dropped = f"{len(opened.dropped)} broken lines" if opened.dropped else ""
            return Examples(_sides(opened.texts), opened.labels, names, dropped)
        named = form.columns
        sides = [columns.texts(opened, named.text)]
        if named.text_pair is not None:
            sides.append(columns.texts(opened, named.text_pair))
        gold = None
        if labelled and form.task == "regression":
            gold = columns.numbers(opened, named.label)
        elif labelled and form.several:
            gold = columns.set_matrix(opened, named.label, form.labels, named.separator)
        elif labelled:
            gold = columns.label_numbers(opened, named.label, form.labels)
        return Examples(_sides(sides), gold, [str(number) for number in opened.numbers])

    # sequences

    def encode(self, inputs: Sequence[str | tuple[str, str]]) -> Sequences:
        pairs = [_two(text, index, self.form.task) for index, text in enumerate(inputs)]
        first = self.tokenizer.ids([a for a, _ in pairs])
        if all(b is None for _, b in pairs):
            return self._single(first)
        if any(b is None for _, b in pairs):
            raise ArgumentError("texts", "all single texts or all pairs", "both")
        return self._pairs(first, self.tokenizer.ids([b for _, b in pairs]))

    def _single(self, texts: list[list[int]]) -> Sequences:
        room, rows, owner = self.form.max_length - 2, [], []
        slides = self.form.long == "slide"
        step = self.form.stride or max(room // 2, 1)
        for example, ids in enumerate(texts):
            # a window has one special token less than those of pairs
            found = windows(0, len(ids), max_length=self.form.max_length + 1, stride=step)
            for start in found.starts if slides else [0]:
                part = [self.cls, *ids[start : start + room], self.sep]
                rows.append((part, [0] * len(part)))
                owner.append(example)
        cut = 0 if slides else sum(len(ids) > room for ids in texts)
        return Sequences(rows, owner, cut=cut)

    def _pairs(self, first: list[list[int]], second: list[list[int]]) -> Sequences:
        room, rows, owner, cut = self.form.max_length - 3, [], [], 0
        for example, (a, b) in enumerate(zip(first, second, strict=True)):
            if self.form.long == "truncate":
                kept = shortened(len(a), len(b), room)
                cut += kept != (len(a), len(b))
                sides = [(a[: kept[0]], b[: kept[1]])]
            else:
                sides = self._slide(a, b, room)
                cut += len(sides[0][0]) < len(a)
            for part in sides:
                rows.append(joined(*part, self.cls, self.sep))
                owner.append(example)
        return Sequences(rows, owner, cut=cut)

    def _slide(self, a: list[int], b: list[int], room: int) -> list[tuple[list[int], list[int]]]:
        """The second text in windows beside the first, which keeps half of the room."""
        a = a[: max(room - len(b), room // 2)]
        width = room - len(a)
        step = self.form.stride or max(width // 2, 1)
        found = windows(len(a), len(b), max_length=room + 3, stride=step, max_question=len(a))
        return [(a, b[start : start + width]) for start in found.starts]

    # training

    def targets(self, gold: np.ndarray, sequences: Sequences) -> Targets:
        labels = gold[sequences.owner]
        if self.problem != "single_label_classification":
            labels = labels.astype(np.float32)
        outputs = len(self.labels) if self.form.several else 1
        return Targets({"labels": labels}, {}, np.full(len(labels), float(outputs)))

    def right(self, output: Any, batch: Batch) -> tuple[Tensor, int] | None:
        if self.problem != "single_label_classification":
            return None
        labels = batch.labels["labels"]
        return (output.logits.argmax(1) == labels).sum(), len(labels)

    # answers

    def outputs(self, output: Any, batch: Batch) -> list[np.ndarray]:
        return list(as_array(fp32(output.logits)))

    def gather(self, sequences: Sequences, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Logits [examples, labels], the mean over an example's windows."""
        logits = np.stack(outputs).astype(np.float64)
        count = np.bincount(sequences.owner)
        summed = np.zeros((len(count), logits.shape[1]))
        np.add.at(summed, sequences.owner, logits)
        return summed / count[:, None]

    def tuned(self, gold: np.ndarray, found: np.ndarray) -> Form:
        if self.problem != "single_label_classification":
            return self.form
        return dataclasses.replace(self.form, temperature=fitted_temperature(found, gold))

    def scores(self, gold: np.ndarray, found: np.ndarray) -> dict[str, float]:
        if self.problem == "regression":
            told = found[:, 0]
            if self.form.glue:
                return glue.scores(self.form.glue, gold, told)
            return {
                "pearson": metrics.pearson(gold, told),
                "spearman": metrics.spearman(gold, told),
                "mean_squared_error": float(np.mean((gold - told) ** 2)),
            }
        if self.form.several:
            return _several_scores(gold, found > 0)
        told = found.argmax(1)
        if self.form.glue:
            return glue.scores(self.form.glue, gold, told)
        return {
            "accuracy": metrics.accuracy(gold, told),
            "macro_f1": metrics.macro_f1(gold, told),
            "matthews": metrics.matthews(gold, told),
        }

    def answers(self, inputs: Sequence[Any], found: np.ndarray) -> list[float | Label | Labels]:
        if self.problem == "regression":
            return [float(value) for value in found[:, 0]]
        if self.form.several:
            return [self._several(row) for row in found]
        return label_answers(self.labels, found, self.form.temperature)

    def _several(self, row: np.ndarray) -> Labels:
        shares = 1 / (1 + np.exp(-row))
        told = [name for name, logit in zip(self.labels, row, strict=True) if logit > 0]
        return Labels(told, dict(zip(self.labels, shares.tolist(), strict=True)))


class Weighted(Classification):
    """Single labels whose classes count by their weights, as torch's cross entropy takes them.

    Args:
        weights: float64 [labels].
    """

    def __init__(self, *args: Any, weights: np.ndarray):
        super().__init__(*args)
        self.weights = weights

    def targets(self, gold: np.ndarray, sequences: Sequences) -> Targets:
        found = super().targets(gold, sequences)
        return found._replace(items=self.weights[found.examples["labels"]])

    def loss(self, output: Any, batch: Batch, items: float) -> Tensor:
        scores = fp32(output.logits)
        weight = torch.tensor(self.weights, dtype=scores.dtype, device=scores.device)
        labels, loss = batch.labels["labels"], torch.nn.functional.cross_entropy
        return loss(scores, labels, weight, reduction="sum") / items


def balanced(gold: np.ndarray, count: int) -> np.ndarray:
    """Weights that make classes count equally: examples / (classes * examples of the class); float64 [count]."""
    return len(gold) / (count * np.maximum(np.bincount(gold, minlength=count), 1))


def label_answers(names: Sequence[str], logits: np.ndarray, temperature: float) -> list[Label]:
    shares = metrics.probabilities(logits, temperature)
    best = shares.argmax(1)
    return [
        Label(names[i], float(row[i]), dict(zip(names, row.tolist(), strict=True)))
        for i, row in zip(best, shares, strict=True)
    ]


def shortened(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens two texts keep: the longer one loses its end, of equal ones the second, as in BERT's code."""
    if first + second <= room:
        return first, second
    most = room - room // 2
    if first <= most:
        return first, room - first
    return (room - second, second) if second <= room // 2 else (most, room // 2)


def joined(a: list[int], b: list[int], cls: int, sep: int) -> tuple[list[int], list[int]]:
    """[CLS] a [SEP] b [SEP], and its segment ids."""
    return [cls, *a, sep, *b, sep], [0] * (len(a) + 2) + [1] * (len(b) + 1)


def _sides(texts: Sequence[Sequence[str]]) -> list[Any]:
    return list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))


def _two(text: Any, index: int, task: str) -> tuple[str, str | None]:
    if isinstance(text, str) and task != "pair":
        return text, None
    pair = isinstance(text, tuple | list) and len(text) == 2
    if pair and all(isinstance(side, str) for side in text):
        return text[0], text[1]
    expected = "a pair of strings" if task == "pair" else "a string or a pair of strings"
    raise ArgumentError(f"texts[{index}]", expected, f"{text!r:.60}")


def _several_scores(gold: np.ndarray, told: np.ndarray) -> dict[str, float]:
    """F1 over all labels of all examples, its mean over labels, and how many examples are right throughout."""

    def f1(gold: np.ndarray, told: np.ndarray) -> float:
        return 2 * float((gold & told).sum()) / max(int(gold.sum() + told.sum()), 1)

    used = (gold | told).any(0)
    each = [f1(gold[:, i], told[:, i]) for i in np.flatnonzero(used)]
    return {
        "micro_f1": f1(gold, told),
        "macro_f1": float(np.mean(each)) if each else 0.0,
        "accuracy": float((gold == told).all(1).mean()),
    }
