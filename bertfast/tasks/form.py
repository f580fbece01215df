"""What a fine-tuned model is for, in its folder beside the weights: how it is fed, and how its output is read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._files import read_json, write_json
from ..errors import ArgumentError, CheckpointError

FILE = "bertfast_task.json"
TASKS = ("single", "pair", "choice", "qa", "tokens", "regression")
LONG = ("truncate", "slide")


@dataclass(frozen=True)
class Columns:
    """Where a file has what.

    Args:
        text, text_pair, label: columns of a csv, tsv or jsonl file or of a data set; text_pair may be None. Of words,
            text and label are columns with lists; of a CoNLL file, word and tag are their columns, from 0 or the end.
        choices: one column with a list, or a column a choice. prefix: a column of what each choice begins with, as in
            SWAG.
        header: names of the columns of a file whose first line has none.
        kind: of the file; None: by its name.
        separator: of several labels in one string.
        mismatched: "drop" or "keep" answers that are not where SQuAD's file says; None: drop those to train on. A kept
            one is learnt where it is said to be.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    choices: tuple[str, ...] = ("choices",)
    prefix: str | None = None
    word: int = 0
    tag: int = -1
    header: tuple[str, ...] | None = None
    kind: str | None = None
    separator: str = ","
    mismatched: str | None = None

    def of_task(self, task: str) -> Columns:
        """With the defaults that a task has of its own."""
        names = _NAMES.get(task, {})
        own = Columns()
        changed = {k: v for k, v in names.items() if getattr(self, k) == getattr(own, k)}
        return dataclasses.replace(self, **changed)


# of questions those of SQuAD in the library datasets
_NAMES = {
    "pair": {"text_pair": "text_pair"},
    "qa": {"text": "question", "text_pair": "context", "label": "answers"},
}


@dataclass(frozen=True)
class Form:
    """A task as a model was trained for it.

    Args:
        task: one of `TASKS`.
        columns: of its files.
        glue: the name of the task in GLUE, whose files and metrics hold then; or None.
        labels: their names, by number.
        several: a text may have any number of labels.
        max_length: the most tokens of a sequence, special ones counted.
        long: what is longer loses its end ("truncate"), or is read in windows ("slide"), over which scores are
            averaged; words are told where they have the most context, answers are searched in all windows.
        stride: tokens from the start of a window to that of the next; None: half a window; of questions 128,
            at most two thirds of one.
        language: of answers: "en", whose words count, or "zh", whose characters do.
        longest: the most tokens of an answer. nulls: a question may have no answer, as in SQuAD 2.
        null_threshold: a question has none where [CLS] scores more than this above the best answer.
        temperature: divides logits before they become probabilities.

    Raises:
        ArgumentError: a field is none of its choices, or out of range.
    """

    task: str
    columns: Columns = Columns()
    glue: str | None = None
    labels: tuple[str, ...] = ()
    several: bool = False
    max_length: int = 128
    long: str = "truncate"
    stride: int | None = None
    language: str = "en"
    longest: int = 30
    nulls: bool = False
    null_threshold: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        choices = (("task", TASKS), ("long", LONG), ("language", ("en", "zh")))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ArgumentError(name, "one of " + ", ".join(known), repr(getattr(self, name)))
        for name, least in (("max_length", 8), ("stride", 1), ("longest", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= least):
                raise ArgumentError(name, f"a whole number, at least {least}", repr(value))
        if self.several and self.task not in ("single", "pair"):
            raise ArgumentError("several", "the task single or pair", self.task)
        if self.task == "choice" and self.long == "slide":
            advice = "The choices are compared as wholes."
            raise ArgumentError("long", "truncate, with the task choice", "slide", advice)

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, json.loads(json.dumps(dataclasses.asdict(self))))


def load_form(folder: str | os.PathLike[str]) -> Form | None:
    """The form of a model's folder; None where there is none.

    Raises:
        CheckpointError: its file is damaged, or of another version.
    """
    path = Path(folder, FILE)
    if not path.is_file():
        return None
    try:
        return form_of(read_json(path, CheckpointError))
    except (ArgumentError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected what bertfast finetune writes ({error})."
        ) from error


def form_of(values: Mapping[str, Any]) -> Form:
    """The form of plain values."""
    values = dict(values)
    columns = {k: tuple(v) if isinstance(v, list) else v for k, v in values["columns"].items()}
    values |= {"columns": Columns(**columns), "labels": tuple(values["labels"])}
    return Form(**values)
