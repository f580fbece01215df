"""The files of `bertfast encode`: texts in, vectors out, both as streams.

Reading: every mistake is an `InputFileError` with the file and the line. Writing: a file appears
under its name when it is whole, and an error leaves what was there.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from .._files import atomic_write
from ..data.tokenizer import is_unicode
from ..errors import ArgumentError, InputFileError, UnsupportedError

Write = Callable[[list[str], np.ndarray], None]
_SUFFIXES = {"ndjson": "jsonl", "pq": "parquet"}
_ROWS = 1024  # rows of a parquet file that are read at a time


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


def _pyarrow(module: str) -> Any:
    try:
        return __import__(f"pyarrow.{module}", fromlist=[module])
    except ImportError as error:
        raise UnsupportedError(
            "Parquet files need the package pyarrow: pip install 'bertfast[parquet]'"
        ) from error


# Reading


@contextlib.contextmanager
def reading(path: str, kind: str | None = None, field: str = "text") -> Iterator[Iterator[str]]:
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
        yield _guarded(READERS[kind](handle, name, field), name)


def _guarded(texts: Iterator[str], name: str) -> Iterator[str]:
    """The texts, with a failing disk or pipe told as trouble of the input."""
    try:
        yield from texts
    except OSError as error:
        raise InputFileError(f"{name}: cannot be read, {error.strerror or error}.") from error


def _lines(handle: IO[bytes], name: str) -> Iterator[str]:
    """Lines with their ends, which are newlines only."""
    for number, line in enumerate(handle, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputFileError(
                f"{name}, line {number}: expected UTF-8, got the byte 0x{line[error.start]:02x} "
                f"at place {error.start + 1} of the line."
            ) from error


def _read_txt(handle: IO[bytes], name: str, field: str) -> Iterator[str]:
    """A text a line; an empty line is an empty text, so that rows keep the numbers of lines."""
    for line in _lines(handle, name):
        yield line.removesuffix("\n").removesuffix("\r")


def _read_jsonl(handle: IO[bytes], name: str, field: str) -> Iterator[str]:
    """The field of an object a line; blank lines are passed over."""
    for number, line in enumerate(_lines(handle, name), 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputFileError(f"{place}: expected a JSON object ({error}).") from error
        if not isinstance(record, dict):
            raise InputFileError(f"{place}: expected a JSON object, got {_kind(record)}.")
        if field not in record:
            raise InputFileError(f"{place}: {_no_field(field, record)}")
        text = record[field]
        if not isinstance(text, str):
            raise InputFileError(f"{place}: {field}: expected a string, got {_kind(text)}.")
        if not is_unicode(text):
            raise InputFileError(f"{place}: {field}: expected text, got half a surrogate pair.")
        yield text


def _read_csv(handle: IO[bytes], name: str, field: str) -> Iterator[str]:
    """A column of a table whose first row names the columns; blank rows are passed over."""
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(_lines(handle, name), strict=True)
    index = None
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputFileError(f"{name}, line {rows.line_num}: {error}.") from error
        if row is None:
            return
        if not row:
            continue
        if index is None:
            if field not in row:
                raise InputFileError(f"{name}, line {rows.line_num}: {_no_field(field, row)}")
            index = row.index(field)
        elif len(row) <= index:
            raise InputFileError(
                f"{name}, line {rows.line_num}: expected at least {index + 1} columns, as {field} "
                f"is number {index + 1}, got {len(row)}."
            )
        else:
            yield row[index]


def _read_parquet(handle: IO[bytes], name: str, field: str) -> Iterator[str]:
    pyarrow = _pyarrow("lib")
    parquet, types = _pyarrow("parquet"), _pyarrow("types")
    source = handle if handle.seekable() else io.BytesIO(handle.read())
    try:
        file = parquet.ParquetFile(source)
        schema = file.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise InputFileError(f"{name}: expected a parquet file ({error}).") from error
    if field not in schema.names:
        raise InputFileError(f"{name}: {_no_field(field, schema.names)}")
    kind = schema.field(field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise InputFileError(f"{name}: {field}: expected a column of strings, got {kind}.")
    return _parquet_rows(file, pyarrow, name, field)


def _parquet_rows(file: Any, pyarrow: Any, name: str, field: str) -> Iterator[str]:
    count = 0
    batches = file.iter_batches(batch_size=_ROWS, columns=[field])
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
            yield text


def _no_field(field: str, names: Iterable[str]) -> str:
    shown = [str(name)[:40] for name in names]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return f"no field {field!r}, only {', '.join(shown[:8]) or 'none'}{more}. Say --field NAME."


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


READERS: dict[str, Callable[[IO[bytes], str, str], Iterator[str]]] = {
    "txt": _read_txt,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


# Writing


class Target:
    """An open output; `writer(dimension)` gives the function that writes texts and vectors."""

    def __init__(self, handle: IO[bytes], kind: str):
        self.handle, self.kind = handle, kind

    def writer(self, dimension: int) -> contextlib.AbstractContextManager[Write]:
        return WRITERS[self.kind](self.handle, dimension)


@contextlib.contextmanager
def output(path: str, kind: str | None = None) -> Iterator[Target]:
    """Opens an output file, which appears under its name when the block ends well; - is a pipe.

    Raises:
        ArgumentError: the name says no known format, or binary data would go to a terminal.
        UnsupportedError: a parquet file without pyarrow.
        OSError: with `path` as its file name: it cannot be made, or the disk is full.
    """
    kind = kind or guess_format("--output", path, WRITERS, "--format", "jsonl")
    if kind == "parquet":
        _pyarrow("parquet")
    if path in ("-", "/dev/stdout"):
        if kind != "jsonl" and sys.stdout.isatty():
            raise ArgumentError("--output", f"a file or a pipe for {kind}", "a terminal")
        yield Target(sys.stdout.buffer, kind)
        sys.stdout.buffer.flush()
        return
    try:
        with atomic_write(path, "wb") as handle:
            yield Target(handle, kind)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.filename:
            raise
        raise OSError(error.errno, error.strerror or str(error), path) from error


@contextlib.contextmanager
def _seekable(handle: IO[bytes]) -> Iterator[IO[bytes]]:
    """The handle, or where it may be a pipe a temporary file that goes there in the end."""
    if handle is not sys.stdout.buffer and handle.seekable():
        yield handle
        return
    with tempfile.TemporaryFile() as spool:
        yield spool
        spool.seek(0)
        shutil.copyfileobj(spool, handle)


def npy_header(rows: int, columns: int) -> bytes:
    """The 128 bytes before the rows of a float32 .npy file, of one size whatever the number of rows."""
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + shape.ljust(117).encode() + b"\n"


@contextlib.contextmanager
def _write_npy(handle: IO[bytes], dimension: int) -> Iterator[Write]:
    rows = 0

    def write(texts: list[str], vectors: np.ndarray) -> None:
        nonlocal rows
        body.write(np.ascontiguousarray(vectors, dtype="<f4").data)
        rows += len(vectors)

    with _seekable(handle) as body:
        body.write(npy_header(0, dimension))
        yield write
        body.seek(0)
        body.write(npy_header(rows, dimension))


@contextlib.contextmanager
def _write_parquet(handle: IO[bytes], dimension: int) -> Iterator[Write]:
    arrow, parquet = _pyarrow("lib"), _pyarrow("parquet")
    kind = arrow.list_(arrow.float32(), dimension)
    schema = arrow.schema([("text", arrow.string()), ("embedding", kind)])

    def write(texts: list[str], vectors: np.ndarray) -> None:
        values = arrow.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        column = arrow.FixedSizeListArray.from_arrays(values, dimension)
        writer.write_batch(arrow.record_batch([arrow.array(texts, arrow.string()), column], schema))

    with _seekable(handle) as body, parquet.ParquetWriter(body, schema) as writer:
        yield write


@contextlib.contextmanager
def _write_jsonl(handle: IO[bytes], dimension: int) -> Iterator[Write]:
    def write(texts: list[str], vectors: np.ndarray) -> None:
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            numbers = ", ".join(f"{value:.9g}" for value in vector)  # enough to give float32 back
            line = f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{numbers}]}}\n'
            handle.write(line.encode())

    yield write


WRITERS: dict[str, Callable[[IO[bytes], int], contextlib.AbstractContextManager[Write]]] = {
    "npy": _write_npy,
    "parquet": _write_parquet,
    "jsonl": _write_jsonl,
}
