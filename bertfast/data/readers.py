"""Documents of a corpus, read in slices that follow from the input alone: however many processes read, each slice has
the same documents."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..checkpoint.hub import require
from ..errors import InputFileError
from ..text import readers as text_readers

FORMATS = ("txt", "jsonl", "parquet")
SLICE = 1 << 22  # bytes of input that make a shard, at least, where there are as many
_MOST = 1024  # shards of a store, about: the slices of a larger input are larger
_PIECE = 1 << 20  # bytes read at a time in search of a border
_ROWS = 256  # of a data set at a time
_END = 1 << 16  # bytes at each end of a file that are hashed, to know it again
_BORDERS = {"txt": re.compile(rb"\n[ \t\r\f\v]*\n"), "jsonl": re.compile(rb"\n")}


class Slice(NamedTuple):
    """A part of the input.

    Fields:
        kind: txt, jsonl, parquet or datasets.
        path: of the file or folder. field: where a record has its text.
        start, stop: bytes of a text file; row groups of a parquet file; rows of a data set.
        bytes: its size, for progress.
    """

    kind: str
    path: str
    field: str
    start: int
    stop: int
    bytes: int


def slices(inputs: Sequence[str | os.PathLike[str]], field: str = "text") -> list[Slice]:
    """The slices of all inputs, in their order.

    Args:
        inputs: text files with blank lines between documents (.txt), .jsonl or .parquet files with a document in
            `field` of each record, or folders that `datasets.load_from_disk` reads.

    Raises:
        InputFileError: a file cannot be read, or has no such field.
        ArgumentError: the name of a file says no known format.
    """
    found: list[Slice] = []
    paths = [os.fspath(path) for path in inputs]
    try:
        size = max(
            SLICE, sum(file.stat().st_size for path in paths for file in _files(path)) // _MOST
        )
        for path in paths:
            found += _slices_of(path, field, size)
    except OSError as error:
        raise InputFileError(f"{error.filename}: cannot be read, {error.strerror}.") from error
    return found


def _slices_of(path: str, field: str, size: int) -> Iterator[Slice]:
    if os.path.isdir(path):
        return _dataset_slices(path, field, size)
    kind = text_readers.guess_format("INPUT", path, FORMATS, "convert it", "txt")
    if kind == "parquet":
        return _parquet_slices(path, field, size)
    return _byte_slices(path, kind, field, size)


def _files(path: str) -> list[Path]:
    place = Path(path)
    return sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]


def documents(part: Slice) -> Iterator[str]:
    """The documents of a slice, as they are read; none is blank.

    Raises:
        InputFileError: something that is no text; the file and the line or row are named.
    """
    texts = _READ[part.kind](part)
    return (text for text in texts if text.strip())


def identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What tells whether an input is the same as before: its name, its size, the hash of its ends."""
    files = _files(os.fspath(path))
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as handle:
            digest.update(handle.read(_END))
            handle.seek(max(0, os.path.getsize(file) - _END))
            digest.update(handle.read(_END))
    size = sum(map(os.path.getsize, files))
    return {"name": Path(path).name, "bytes": size, "ends": digest.hexdigest()}


# text files and jsonl


def _byte_slices(path: str, kind: str, field: str, least: int) -> Iterator[Slice]:
    size = os.path.getsize(path)
    with open(path, "rb") as handle:
        start = 0
        while start < size:
            stop = _border(handle, start + least, _BORDERS[kind], size)
            yield Slice(kind, path, field, start, stop, stop - start)
            start = stop


def _border(handle: IO[bytes], place: int, border: re.Pattern[bytes], size: int) -> int:
    """The end of the first border that ends after `place`, else the size."""
    kept = b""
    while place < size:
        handle.seek(place)
        piece = kept + handle.read(_PIECE)
        found = border.search(piece)
        if found:
            return place - len(kept) + found.end()
        place += len(piece) - len(kept)
        # what may be the start of a border: a line break and blanks
        rest = piece.rstrip(b" \t\r\f\v")
        kept = piece[len(rest) - 1 :] if rest.endswith(b"\n") else b""
    return size


class _Part:
    """The lines of a range of bytes of a file, which starts and ends with lines."""

    def __init__(self, handle: IO[bytes], start: int, stop: int):
        handle.seek(start)
        self._handle, self._left = handle, stop - start

    def __iter__(self) -> Iterator[bytes]:
        while self._left > 0:
            line = self._handle.readline()
            if not line:
                return
            self._left -= len(line)
            yield line


def _texts(part: Slice) -> Iterator[str]:
    """A text file's documents: the lines between blank ones."""
    with open(part.path, "rb") as handle:
        lines: list[str] = []
        for line in _located(part, handle, text_readers.lines):
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines)
                lines = []
        yield "".join(lines)


def _records(part: Slice) -> Iterator[str]:
    def read(handle: Any, name: str, first: int) -> Iterator[str]:
        return (text for _, text in text_readers.read_jsonl(handle, name, part.field, first))

    with open(part.path, "rb") as handle:
        yield from _located(part, handle, read)


def _located(part: Slice, handle: IO[bytes], read: Any) -> Iterator[str]:
    """What `read(lines, name, first)` yields. Lines are counted only where one is wrong: then it is read again."""
    try:
        yield from read(
            _Part(handle, part.start, part.stop), part.path, 1 if part.start == 0 else 2
        )
    except InputFileError:
        handle.seek(0)
        before = sum(piece.count(b"\n") for piece in _pieces(handle, part.start))
        for _ in read(_Part(handle, part.start, part.stop), part.path, before + 1):
            pass
        raise


def _pieces(handle: IO[bytes], size: int) -> Iterator[bytes]:
    for start in range(0, size, _PIECE):
        yield handle.read(min(_PIECE, size - start))


# parquet


def _parquet_slices(path: str, field: str, least: int) -> Iterator[Slice]:
    with open(path, "rb") as handle:
        file = text_readers.open_parquet(handle, path, field)
        sizes = [file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups)]
    start = 0
    for stop in range(1, len(sizes) + 1):
        size = sum(sizes[start:stop])
        if size >= least or stop == len(sizes):
            yield Slice("parquet", path, field, start, stop, size)
            start = stop


def _row_groups(part: Slice) -> Iterator[str]:
    with open(part.path, "rb") as handle:
        file = text_readers.open_parquet(handle, part.path, part.field)
        groups = range(part.start, part.stop)
        first = sum(file.metadata.row_group(n).num_rows for n in range(part.start))
        rows = text_readers.parquet_rows(file, part.path, part.field, list(groups), first)
        yield from (text for _, text in rows)


# folders of the library datasets


def _dataset_slices(path: str, field: str, least: int) -> Iterator[Slice]:
    data = _dataset(path, field)
    size = data.data.nbytes
    rows = max(1, len(data) * least // max(size, 1))
    for start in range(0, len(data), rows):
        stop = min(start + rows, len(data))
        yield Slice("datasets", path, field, start, stop, size * (stop - start) // len(data))


def _rows(part: Slice) -> Iterator[str]:
    data = _dataset(part.path, part.field)
    for start in range(part.start, part.stop, _ROWS):
        texts = data[start : min(start + _ROWS, part.stop)][part.field]
        for row, text in enumerate(texts, start + 1):
            if not isinstance(text, str):
                raise InputFileError(
                    f"{part.path}, row {row}: {part.field}: expected a string, got {text!r:.40}."
                )
            yield text


def open_dataset(path: str) -> Any:
    """The `datasets.Dataset` of a folder.

    Raises:
        InputFileError: it is no such folder, or has several parts.
        UnsupportedError: the library is not installed.
    """
    library = require("datasets", f"The folder {path}")
    try:
        data = library.load_from_disk(path)
    except Exception as error:  # the library raises many kinds
        raise InputFileError(
            f"{path}: expected a folder that datasets.load_from_disk reads ({error})."
        ) from error
    if isinstance(data, dict):
        raise InputFileError(
            f"{path}: expected one data set, got {', '.join(data)}. Give the folder of one, such as "
            f"{os.path.join(path, next(iter(data), 'train'))}."
        )
    return data


def _dataset(path: str, field: str) -> Any:
    data = open_dataset(path)
    if field not in data.column_names:
        raise InputFileError(f"{path}: {text_readers.no_field(field, data.column_names)}")
    return data


_READ = {"txt": _texts, "jsonl": _records, "parquet": _row_groups, "datasets": _rows}


def texts(inputs: Sequence[str | os.PathLike[str]], field: str = "text") -> Iterator[str]:
    """Every document of the inputs, as `slices` and `documents` read them."""
    return itertools.chain.from_iterable(map(documents, slices(inputs, field)))
