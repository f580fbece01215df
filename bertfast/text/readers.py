"""Readers of text files, as streams: every mistake is an `InputFileError` with the file and the line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from ..errors import ArgumentError, InputFileError, UnsupportedError
from .tokenizer import is_unicode

Numbered = Iterator[tuple[int, str]]
_SUFFIXES = {"ndjson": "jsonl", "pq": "parquet"}
_ROWS = 1024  # rows of a parquet file that are read at a time
_REMEMBERED = 1 << 15  # texts whose places are known: more than whoever reads ahead takes at a time


def guess_format(argument: str, path: str, formats: Iterable[str], option: str, pipe: str) -> str:
    """The format that a file's name says; `pipe` for -.

    Raises:
        ArgumentError: the name says none of `formats`.
    """
    if path == "-":
        return pipe
    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    found = _SUFFIXES.get(suffix, suffix)
    if found not in formats:
        names = ", ".join(f".{name}" for name in formats)
        raise ArgumentError(argument, f"a name in {names}", repr(path), f"Or say {option}.")
    return found


def load_pyarrow(module: str) -> Any:
    try:
        return __import__(f"pyarrow.{module}", fromlist=[module])
    except ImportError as error:
        raise UnsupportedError(
            "Parquet files need the package pyarrow: pip install 'bertfast[parquet]'"
        ) from error


class Texts(Iterator[str]):
    """The texts of a file, which remembers where the last ones stood.

    Args:
        numbered: (line or row, text) of each text.
        name: of the file. unit: what is counted, "line" or "row".
    """

    def __init__(self, numbered: Numbered, name: str, unit: str):
        self._numbered, self._name, self._unit = numbered, name, unit
        self._count = 0
        self._last: deque[int] = deque(maxlen=_REMEMBERED)

    def __next__(self) -> str:
        try:
            number, text = next(self._numbered)
        except OSError as error:  # a failing disk or pipe
            reason = error.strerror or error
            raise InputFileError(f"{self._name}: cannot be read, {reason}.") from error
        self._last.append(number)
        self._count += 1
        return text

    def place(self, index: int) -> str:
        """Where a text stands, for messages; `index` counts from 0."""
        number = self._last[index - self._count]
        return f"{self._name}, {self._unit} {number}"


@contextlib.contextmanager
def reading(path: str, kind: str | None = None, field: str = "text") -> Iterator[Texts]:
    """Yields an iterator over the texts of a file; - is standard input.

    Args:
        kind: one of `READERS`; default: by the name.
        field: the key, column or field that holds the text (jsonl, csv, parquet).

    Raises:
        InputFileError: at once if the file cannot be opened, else when its bad line is reached.
        ArgumentError: the name says no known format.
        UnsupportedError: a parquet file without pyarrow.
    """
    kind = kind or guess_format("INPUT", path, READERS, "--input-format", "txt")
    name = "standard input" if path == "-" else path
    with contextlib.ExitStack() as stack:
        try:
            piped = path == "-"
            handle = sys.stdin.buffer if piped else stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise InputFileError(f"{path}: cannot be read, {error.strerror}.") from error
        unit = "row" if kind == "parquet" else "line"
        yield Texts(READERS[kind](handle, name, field), name, unit)


def lines(handle: Iterable[bytes], name: str, first: int = 1) -> Iterator[str]:
    """Lines with their ends, which are newlines only; `first` is the number of the first.

    Raises:
        InputFileError: a line is not UTF-8.
    """
    for number, line in enumerate(handle, first):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputFileError(
                f"{name}, line {number}: expected UTF-8, got the byte 0x{line[error.start]:02x} "
                f"at place {error.start + 1} of the line."
            ) from error


def _read_txt(handle: IO[bytes], name: str, field: str) -> Numbered:
    """A text a line; an empty line is an empty text, so that rows keep the numbers of lines."""
    for number, line in enumerate(lines(handle, name), 1):
        yield number, line.removesuffix("\n").removesuffix("\r")


def jsonl_records(
    handle: Iterable[bytes], name: str, first: int = 1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each line; blank lines are passed over. `first` is the number of the first line.

    Raises:
        InputFileError: a line is no JSON object.
    """
    for number, line in enumerate(lines(handle, name, first), first):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputFileError(f"{place}: expected a JSON object ({error}).") from error
        if not isinstance(record, dict):
            raise InputFileError(f"{place}: expected a JSON object, got {kind_of(record)}.")
        yield number, record


def read_jsonl(handle: Iterable[bytes], name: str, field: str, first: int = 1) -> Numbered:
    """The field of an object a line; blank lines are passed over. `first` is the number of the first line.

    Raises:
        InputFileError: a line is no JSON object, or its field no string.
    """
    for number, record in jsonl_records(handle, name, first):
        place = f"{name}, line {number}"
        if field not in record:
            raise InputFileError(f"{place}: {no_field(field, record)}")
        text = record[field]
        if not isinstance(text, str):
            raise InputFileError(f"{place}: {field}: expected a string, got {kind_of(text)}.")
        if not is_unicode(text):
            raise InputFileError(f"{place}: {field}: expected text, got half a surrogate pair.")
        yield number, text


def csv_rows(handle: IO[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """(last line, fields) of each row of a table with commas and quotes; blank rows are passed over.

    Raises:
        InputFileError: a quote is not closed, or closed inside a field.
    """
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(lines(handle, name), strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputFileError(f"{name}, line {rows.line_num}: {error}.") from error
        if row is None:
            return
        if row:
            yield rows.line_num, row


def _read_csv(handle: IO[bytes], name: str, field: str) -> Numbered:
    """A column of a table whose first row names the columns."""
    index = None
    for line, row in csv_rows(handle, name):
        if index is None:
            if field not in row:
                raise InputFileError(f"{name}, line {line}: {no_field(field, row)}")
            index = row.index(field)
        elif len(row) <= index:
            raise InputFileError(
                f"{name}, line {line}: expected at least {index + 1} columns, as {field} "
                f"is number {index + 1}, got {len(row)}."
            )
        else:
            yield line, row[index]


def _read_parquet(handle: IO[bytes], name: str, field: str) -> Numbered:
    return parquet_rows(open_parquet(handle, name, field), name, field)


def open_parquet(handle: IO[bytes], name: str, field: str) -> Any:
    """The pyarrow.parquet.ParquetFile of a file that has a column `field` of strings.

    Raises:
        InputFileError: it is no such file.
        UnsupportedError: pyarrow is not installed.
    """
    pyarrow = load_pyarrow("lib")
    parquet, types = load_pyarrow("parquet"), load_pyarrow("types")
    source = handle if handle.seekable() else io.BytesIO(handle.read())
    try:
        file = parquet.ParquetFile(source)
        schema = file.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise InputFileError(f"{name}: expected a parquet file ({error}).") from error
    if field not in schema.names:
        raise InputFileError(f"{name}: {no_field(field, schema.names)}")
    kind = schema.field(field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise InputFileError(f"{name}: {field}: expected a column of strings, got {kind}.")
    return file


def parquet_rows(
    file: Any, name: str, field: str, row_groups: list[int] | None = None, before: int = 0
) -> Numbered:
    """(row, text) of each row of the given row groups, of all without; `before` rows stand before them.

    Raises:
        InputFileError: a row has no text, or the file is corrupt.
    """
    pyarrow = load_pyarrow("lib")
    count = before
    batches = file.iter_batches(batch_size=_ROWS, columns=[field], row_groups=row_groups)
    while True:
        try:
            batch = next(batches, None)
            texts = None if batch is None else batch.column(0).to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputFileError(
                f"{name}, after row {count}: corrupt or not UTF-8 ({error})."
            ) from error
        if texts is None:
            return
        for text in texts:
            count += 1
            if text is None:
                raise InputFileError(f"{name}, row {count}: {field}: expected a string, got null.")
            yield count, text


def no_field(field: str, names: Iterable[str], advice: str = "Say --field NAME.") -> str:
    """What an error says where a file lacks a field."""
    shown = [str(name)[:40] for name in names]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return f"no field {field!r}, only {', '.join(shown[:8]) or 'none'}{more}. {advice}"


def kind_of(value: Any) -> str:
    """What an error calls a JSON value's type."""
    return "null" if value is None else type(value).__name__


READERS: dict[str, Callable[[IO[bytes], str, str], Numbered]] = {
    "txt": _read_txt,
    "jsonl": read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
