"""Columns of a table as texts, labels and numbers. A value that is none is an `InputFileError` with file, line and
column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import InputFileError
from ...text.tokenizer import is_unicode
from .tables import Table, check_columns, described

_SHOWN = 12  # labels that a message lists


def texts(table: Table, column: str, *, allow_empty: bool = False) -> list[str]:
    """The texts of a column.

    Args:
        allow_empty: take texts that are empty or blank, too.

    Raises:
        InputFileError: no such column, or a value that is no text, or is empty.
    """
    values = _column(table, column)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise _wrong(table, index, column, "a text", described(value))
        if not is_unicode(value):
            raise _wrong(table, index, column, "a text", "half a surrogate pair")
        if not allow_empty and not value.strip():
            raise _wrong(table, index, column, "a text", "an empty one")
    return values


def label_names(table: Table, column: str) -> list[str]:
    """The labels that a column has, sorted; by value where all are whole numbers.

    Raises:
        InputFileError: no such column, a value that is no label, or less than two labels.
    """
    found = Counter(_labels(table, column))
    if len(found) < 2:
        raise InputFileError(
            f"{table.name}: {column}: expected at least two labels, got only {next(iter(found))!r}. "
            f"There is nothing to learn from one class."
        )
    return _sorted(found)


def label_numbers(table: Table, column: str, names: Sequence[str]) -> np.ndarray:
    """The place of each example's label in `names`: int64 [examples].

    Raises:
        InputFileError: no such column, a value that is no label, or a label that is not in `names`.
    """
    places = {name: place for place, name in enumerate(names)}
    found = _labels(table, column)
    for index, label in enumerate(found):
        if label not in places:
            raise _wrong(table, index, column, f"a label of {_listed(names)}", repr(label))
    return np.array([places[label] for label in found], dtype=np.int64)


def label_sets(table: Table, column: str, separator: str = ",") -> list[list[str]]:
    """The labels of each example that may have several or none: a JSON list, or a string with a separator.

    Raises:
        InputFileError: no such column, or a value that is neither.
    """
    found = []
    for index, value in enumerate(_column(table, column)):
        parts = value.split(separator) if isinstance(value, str) else value
        if not isinstance(parts, list):
            raise _wrong(table, index, column, "a list of labels", described(value))
        named = [_label(table, index, column, part) for part in parts if part != ""]
        found.append(list(dict.fromkeys(named)))
    return found


def set_names(table: Table, column: str, separator: str = ",") -> list[str]:
    """The labels that a column of several labels has, sorted as in `label_names`.

    Raises:
        InputFileError: no such column, a value that is no list of labels, or no label at all.
    """
    found = {label for labels in label_sets(table, column, separator) for label in labels}
    if not found:
        raise InputFileError(f"{table.name}: {column}: expected labels, got none in any example.")
    return _sorted(found)


def set_matrix(table: Table, column: str, names: Sequence[str], separator: str = ",") -> np.ndarray:
    """Which examples have which labels: bool [examples, labels].

    Raises:
        InputFileError: as `label_numbers`.
    """
    places = {name: place for place, name in enumerate(names)}
    matrix = np.zeros((len(table), len(names)), dtype=bool)
    for index, labels in enumerate(label_sets(table, column, separator)):
        for label in labels:
            if label not in places:
                raise _wrong(table, index, column, f"labels of {_listed(names)}", repr(label))
            matrix[index, places[label]] = True
    return matrix


def numbers(table: Table, column: str) -> np.ndarray:
    """The numbers of a column, for regression: float64 [examples].

    Raises:
        InputFileError: no such column, or a value that is no finite number.
    """
    found = []
    for index, value in enumerate(_column(table, column)):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise _wrong(table, index, column, "a number", described(value))
        found.append(number)
    return np.array(found, dtype=np.float64)


def check_count(name: str, count: int, batch_size: int) -> None:
    """Raises InputFileError where a file has fewer examples than a batch."""
    if count < batch_size:
        raise InputFileError(
            f"{name}: expected at least a batch of {batch_size} examples, got {count}. "
            f"Give more examples, or a batch size of at most {count}."
        )


def _column(table: Table, column: str) -> list[Any]:
    check_columns(table.name, [column], list(table.columns))
    return table.columns[column]


def _labels(table: Table, column: str) -> list[str]:
    return [_label(table, i, column, value) for i, value in enumerate(_column(table, column))]


def _label(table: Table, index: int, column: str, value: Any) -> str:
    """A label is a string that is not empty; true, false and whole numbers become strings, as a csv file has them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise _wrong(table, index, column, "a label", described(value))
    if not value.strip():
        raise _wrong(table, index, column, "a label", "an empty one")
    return value


def _sorted(labels: Any) -> list[str]:
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _wrong(table: Table, index: int, column: str, expected: str, got: str) -> InputFileError:
    return InputFileError(f"{table.place(index)}: {column}: expected {expected}, got {got}.")
