"""The output files of `bertfast encode`: a file appears under its name when it is whole, or what was there stays."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from .._files import atomic_write
from ..errors import ArgumentError
from ..text.readers import guess_format, load_pyarrow

Write = Callable[[list[str], np.ndarray], None]
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


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
        load_pyarrow("parquet")
    if path in _STDOUT:
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
    """What stands before the rows of a float32 .npy file; numpy makes it of one size whatever the number of rows."""
    header, said = io.BytesIO(), {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
    np.lib.format.write_array_header_1_0(header, said)
    return header.getvalue()


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
    arrow, parquet = load_pyarrow("lib"), load_pyarrow("parquet")
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
