"""What every kind of task tells: how its files are read, its examples become sequences, and logits become answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.labelled.tables import Table, read_table
from ...data.sequences import Batch, Sequences
from ...text.tokenizer import Tokenizer
from ..form import Form
from ..metrics import temperature


class Examples(NamedTuple):
    """inputs: what is asked about. gold: what is right, by example, or None where nobody said so. names: what
    predictions are written beside: an id, or the number of a row. dropped: how many were left out, and why."""

    inputs: Sequence[Any]
    gold: Any
    names: Sequence[str]
    dropped: str = ""

    def subset(self, indices: np.ndarray) -> Examples:
        def some(items: Any) -> Any:
            if items is None or isinstance(items, np.ndarray):
                return items if items is None else items[indices]
            return [items[i] for i in indices]

        return Examples(some(self.inputs), some(self.gold), some(self.names), self.dropped)


class Targets(NamedTuple):
    """What training compares with, by the argument of the model's head.

    Fields:
        examples: arrays with a row for each example that training counts.
        tokens: int64 [T] over the tokens of all sequences.
        items: float64, by how much each example divides a step's loss.
    """

    examples: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    items: np.ndarray


class Kind:
    """A kind of task. A subclass has to have the parts that raise TypeError here.

    Args:
        form: of the task. tokenizer: of the model.

    Attributes:
        head: name of the model's class in `bertfast.models.heads`. group: sequences of an example in a row, of which
            the head compares the scores.
    """

    head: str
    group = 1

    def __init__(self, form: Form, tokenizer: Tokenizer):
        self.form, self.tokenizer = form, tokenizer
        self.cls, self.sep = tokenizer.cls_sep

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the head's scores."""
        return self.form.labels

    @property
    def problem(self) -> str | None:
        """transformers' problem_type."""
        return None

    @staticmethod
    def open(form: Form, path: str, part: str) -> Any:
        """A file, read but not understood. part: "train", "dev" or "test", which has no labels, or a split of GLUE."""
        raise TypeError("expected a kind of task")

    @staticmethod
    def learn(form: Form, opened: Any) -> Form:
        """The form with what a file to train on says: its labels, for example."""
        return form

    @staticmethod
    def examples(form: Form, opened: Any, labelled: bool) -> Examples:
        raise TypeError("expected a kind of task")

    def encode(self, inputs: Sequence[Any]) -> Sequences:
        raise TypeError("expected a kind of task")

    def targets(self, gold: Any, sequences: Sequences) -> Targets:
        raise TypeError("expected a kind of task")

    def loss(self, output: Any, batch: Batch, items: float) -> Tensor:
        """The part of a step's loss that a batch has."""
        return output.loss

    def right(self, output: Any, batch: Batch) -> tuple[Tensor, int] | None:
        """How many of how many are right, for the log; None where that says nothing."""
        return None

    def outputs(self, output: Any, batch: Batch) -> list[np.ndarray]:
        """The logits of each sequence."""
        raise TypeError("expected a kind of task")

    def gather(self, sequences: Sequences, outputs: Sequence[np.ndarray]) -> Any:
        """What the logits of all sequences say of the examples."""
        raise TypeError("expected a kind of task")

    def tuned(self, gold: Any, found: Any) -> Form:
        """The form with what is tuned on examples that were not trained on."""
        return self.form

    def scores(self, gold: Any, found: Any) -> dict[str, float]:
        """The task's metrics, the most important one first."""
        raise TypeError("expected a kind of task")

    def answers(self, inputs: Sequence[Any], found: Any) -> list[Any]:
        """What a user is told of each example."""
        raise TypeError("expected a kind of task")


def table_of(form: Form, path: str, part: str, *wanted: str | None) -> Table:
    """The table of a file with the wanted columns and that of labels; of one to predict on all columns."""
    named = form.columns
    columns = None if part == "test" else [c for c in (*wanted, named.label) if c is not None]
    return read_table(path, columns, kind=named.kind, header=named.header)


def fitted_temperature(logits: np.ndarray, gold: np.ndarray) -> float:
    """A temperature for probabilities (Guo et al., "On Calibration of Modern Neural Networks", 2017); 1 where nothing
    is wrong, which would make every answer certain."""
    if (logits.argmax(1) == gold).all():
        return 1.0
    return temperature(logits, gold)


def as_array(tensor: Tensor) -> np.ndarray:
    """As float32."""
    return tensor.detach().to(torch.float32).cpu().numpy()
