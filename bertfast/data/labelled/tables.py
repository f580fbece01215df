"""Tables of examples: csv, tsv, jsonl, and folders of the library datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ...errors import ArgumentError, InputFileError
from ...text.readers import csv_rows, guess_format, jsonl_records, kind_of, lines, no_field
from ..readers import open_dataset

FORMATS = ("csv", "tsv", "jsonl", "datasets")
_ADVICE = "Name the column that you mean."
Rows = Iterator[tuple[int, list[str]]]


@dataclass(frozen=True)
class Table:
    """Columns of examples.

    Fields:
        name: of the file or folder.
        columns: by name, a value for each example: strings of csv and tsv, else what JSON or the data set has.
        numbers: the line of each example, for a data set its row, from 1.
        unit: what `numbers` counts: "line" or "row".
        dropped: the lines that were left out, as they had too few or too many fields.
    """

    name: str
    columns: dict[str, list[Any]]
    numbers: list[int]
    unit: str
    dropped: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, index: int) -> str:
        """Where an example stands, for messages; `index` counts from 0."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    kind: str | None = None,
    header: Sequence[str] | None = None,
    drop_ragged: bool = False,
) -> Table:
    """The examples of a file, or of a folder that `datasets.load_from_disk` reads.

    Args:
        columns: the ones to read; default: all of the header, of the first record or of the data set.
        kind: "csv", "tsv" (no quotes: a tab always ends a field, as in GLUE), "jsonl" or "datasets"; default: by the
            name; a folder is a data set.
        header: the names of the columns of a csv or tsv file whose first line has none.
        drop_ragged: leave out lines of a csv or tsv file with another number of fields than the header, and list them
            in `dropped`.

    Raises:
        InputFileError: the file cannot be read; a line is broken or ragged; a column is missing, then those there are
            named; or there is no example.
        ArgumentError: the name says no known format.
    """
    name = os.fspath(path)
    if kind is None:
        folder = os.path.isdir(name)
        kind = "datasets" if folder else guess_format("path", name, FORMATS[:3], "kind", "csv")
    if kind not in FORMATS:
        raise ArgumentError("kind", ", ".join(FORMATS), repr(kind))
    if kind == "datasets":
        table = _from_dataset(name, columns)
    else:
        try:
            with open(name, "rb") as handle:
                if kind == "jsonl":
                    table = _from_records(jsonl_records(handle, name), name, columns)
                else:
                    rows = _ROWS[kind](handle, name)
                    table = _from_rows(rows, name, columns, header, drop_ragged)
        except OSError as error:
            raise InputFileError(f"{name}: cannot be read, {error.strerror}.") from error
    if not table.numbers:
        raise InputFileError(f"{name}: expected examples, got none.")
    return table


def _tsv_rows(handle: IO[bytes], name: str) -> Rows:
    for number, line in enumerate(lines(handle, name), 1):
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split("\t")


_ROWS: dict[str, Callable[[IO[bytes], str], Rows]] = {"csv": csv_rows, "tsv": _tsv_rows}


def _from_rows(
    rows: Rows,
    name: str,
    columns: Sequence[str] | None,
    header: Sequence[str] | None,
    drop_ragged: bool,
) -> Table:
    first = 1
    if header is None:
        first, header = next(rows, (1, []))
    columns = list(header if columns is None else columns)
    check_columns(f"{name}, line {first}", columns, header)
    indices = [list(header).index(column) for column in columns]
    found: list[list[str]] = [[] for _ in columns]
    numbers, dropped = [], []
    for number, row in rows:
        if len(row) == len(header):
            numbers.append(number)
            for values, index in zip(found, indices, strict=True):
                values.append(row[index])
        elif drop_ragged:
            dropped.append(number)
        else:
            raise InputFileError(
                f"{name}, line {number}: expected {len(header)} fields ({', '.join(header)}), got {len(row)}."
            )
    return Table(name, dict(zip(columns, found, strict=True)), numbers, "line", dropped)


def _from_records(
    records: Iterable[tuple[int, dict[str, Any]]], name: str, columns: Sequence[str] | None
) -> Table:
    numbers: list[int] = []
    found: dict[str, list[Any]] = {}
    for number, record in records:
        if not numbers:
            found = {column: [] for column in (record if columns is None else columns)}
        check_columns(f"{name}, line {number}", list(found), list(record))
        numbers.append(number)
        for column, values in found.items():
            values.append(record[column])
    return Table(name, found, numbers, "line", [])


def _from_dataset(name: str, columns: Sequence[str] | None) -> Table:
    data = open_dataset(name)
    columns = list(data.column_names if columns is None else columns)
    check_columns(name, columns, data.column_names)
    found = {column: list(data[column]) for column in columns}
    for column, values in found.items():
        feature = data.features[column]
        names = getattr(feature, "names", None)
        if names is not None:  # numbers of named classes; -1 is an example without a label
            found[column] = [names[v] if isinstance(v, int) and v >= 0 else None for v in values]
        names = getattr(getattr(feature, "feature", None), "names", None)
        if names is not None:  # a list of them
            found[column] = [[names[v] for v in row] for row in values]
    return Table(name, found, list(range(1, len(data) + 1)), "row", [])


def check_columns(place: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raises InputFileError for the first wanted column that is not there once; those that are there are named."""
    for column in wanted:
        count = list(there).count(column)
        if count == 0:
            raise InputFileError(f"{place}: {no_field(column, there, _ADVICE)}")
        if count > 1:
            raise InputFileError(f"{place}: expected one column {column!r}, got {count}.")


def described(value: Any) -> str:
    """A value for a message: a string shortened, of others the type."""
    return f"{value!r:.40}" if isinstance(value, str | int | float) else kind_of(value)
