"""Answers as rows and files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .._files import atomic_write
from ..errors import ArgumentError
from ..text.readers import guess_format
from .kinds import Chosen, Entity, Found, Kind, Label, Labels, Tagged

FORMATS = ("csv", "tsv", "jsonl", "json", "conll")


def row_of(answer: Any) -> dict[str, Any]:
    """An answer by column; what has no column of its own is a list or an object of JSON."""
    if isinstance(answer, Label):
        return {"prediction": answer.label, "probability": answer.probability}
    if isinstance(answer, Labels):
        return {"prediction": answer.labels, "probabilities": answer.probabilities}
    if isinstance(answer, Chosen):
        return {"prediction": answer.index, "probability": answer.probability}
    if isinstance(answer, Found):
        rest = {name: getattr(answer, name) for name in ("start", "stop", "probability")}
        return {"prediction": answer.text, **rest, "null_score": answer.null_score}
    if isinstance(answer, Tagged):
        return {"prediction": answer.labels, "probabilities": answer.probabilities}
    if isinstance(answer, list):
        return {"prediction": [entity._asdict() for entity in answer if isinstance(entity, Entity)]}
    return {"prediction": answer}


def format_of(path: str, kind: str | None) -> str:
    """The format of a file of predictions: as said, or by its name. Raises ArgumentError."""
    return kind or guess_format("--output", path, FORMATS, "--format", "jsonl")


Write = Callable[[Sequence[Mapping[str, Any]], Sequence[Any], Any], None]


@contextmanager
def writer_of(handle: IO[str], name: str, kind: Kind) -> Iterator[Write]:
    """Gives a function that writes rows of a file, what was asked, and what `Kind.gather` found.

    Args:
        name: of the format: a table; jsonl; json, one object with an answer for each id, as SQuAD's script reads it; or
            conll, a word and its label a line.

    Raises:
        ArgumentError: the format does not go with the task.
    """
    if name in ("json", "conll") and {"json": "qa", "conll": "tokens"}[name] != kind.form.task:
        expected = "csv, tsv or jsonl, of this task"
        raise ArgumentError("--format", expected, name)
    whole: dict[str, str] = {}
    table = Writer(handle, name)

    def write(rows: Sequence[Mapping[str, Any]], inputs: Sequence[Any], found: Any) -> None:
        if name == "conll":
            for tagged in kind.tags(inputs, found):
                pairs = zip(tagged.words, tagged.labels, strict=True)
                handle.writelines(f"{word}\t{label}\n" for word, label in pairs)
                handle.write("\n")
            return
        for row, answer in zip(rows, kind.answers(inputs, found), strict=True):
            if name == "json":
                whole[str(row.get("id", len(whole)))] = answer.text
            else:
                table.write(row, answer)

    yield write
    if name == "json":
        json.dump(whole, handle, ensure_ascii=False, indent=1)
        handle.write("\n")


class Writer:
    """Rows of a table, or lines of JSON, to an open file.

    Args:
        kind: "csv", "tsv" or "jsonl".
    """

    def __init__(self, handle: IO[str], kind: str):
        self._handle, self._kind = handle, kind
        self._begun = False

    def write(self, row: Mapping[str, Any], answer: Any) -> None:
        """A row of the input and its answer.

        Raises:
            ArgumentError: the input has a column of that name; or a tsv file cannot hold a text.
        """
        told = row_of(answer)
        for name in told:
            if name in row:
                advice = "Rename the column, or leave it out."
                raise ArgumentError("INPUT", f"no column {name!r}, which is written", "one", advice)
        values = {**row, **told}
        if self._kind == "jsonl":
            self._handle.write(json.dumps(values, ensure_ascii=False) + "\n")
            return
        write = self._csv if self._kind == "csv" else self._tsv
        if not self._begun:
            write(list(values))
        self._begun = True
        write([_cell(value) for value in values.values()])

    def _csv(self, cells: Sequence[Any]) -> None:
        csv.writer(self._handle, lineterminator="\n").writerow(cells)

    def _tsv(self, cells: Sequence[Any]) -> None:
        """Without quotes, as `read_table` reads it."""
        line = "\t".join(map(str, cells))
        if line.count("\t") >= len(cells) or "\n" in line or "\r" in line:
            got = "a tab or a line break in a text"
            raise ArgumentError("--format", "csv or jsonl for these rows", f"tsv, and {got}")
        self._handle.write(line + "\n")


def write_predictions(path: Path, names: Sequence[str], answers: Sequence[Any]) -> None:
    """A csv file of answers, each beside the name of its example."""
    with atomic_write(path, "w") as handle:
        writer = Writer(handle, "csv")
        for name, answer in zip(names, answers, strict=True):
            writer.write({"example": name}, answer)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
