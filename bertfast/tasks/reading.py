"""Files whose rows a fine-tuned model is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..data.labelled.conll import Sentences
from ..data.labelled.questions import Questions
from ..data.labelled.tables import Table
from ..errors import ArgumentError
from ..text.readers import reading
from .form import Columns
from .kinds import Kind

PIPE = "/dev/stdin"


class Inputs(NamedTuple):
    """inputs: what is asked. rows: what stands beside it in the file, by column."""

    inputs: Sequence[Any]
    rows: Sequence[Mapping[str, Any]]


def read_inputs(kind: Kind, path: str, columns: Columns, said: str | None) -> Inputs:
    """The rows of a file; those of a table keep all their columns.

    Args:
        path: - is standard input. columns: where the file has what.
        said: its format: csv, tsv, jsonl, datasets, conll or txt (a text a line); None: by its name.

    Raises:
        InputFileError: the file cannot be read, or a column is missing.
        ArgumentError: the format does not go with the task.
    """
    task = kind.form.task
    if said == "txt" or (said is None and (path == "-" or path.endswith(".txt"))):
        if task not in ("single", "tokens", "regression"):
            expected = f"csv, tsv or jsonl, as the task {task} asks about more than one text"
            raise ArgumentError("INPUT", expected, "a text a line", "Say --input-format.")
        with reading(path, "txt") as lines:
            texts = list(lines)
        return Inputs(texts, [{"text": text} for text in texts])
    path = PIPE if path == "-" else path
    form = replace(kind.form, columns=replace(columns, kind=said), glue=None)
    opened = kind.open(form, path, "test")
    examples = kind.examples(form, opened, False)
    return Inputs(examples.inputs, _rows(opened, examples.inputs))


def _rows(opened: Any, inputs: Sequence[Any]) -> list[dict[str, Any]]:
    if isinstance(opened, Table):
        names = list(opened.columns)
        return [
            dict(zip(names, row, strict=True)) for row in zip(*opened.columns.values(), strict=True)
        ]
    if isinstance(opened, Questions):
        return [{"id": q.id, "question": q.question} for q in opened.questions]
    if isinstance(opened, Sentences):
        return [{"words": words} for words in inputs]
    raise TypeError(type(opened).__name__)
