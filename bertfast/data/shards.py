"""A shard of a store: the documents of one slice of the input, written whole or not at all.

A shard is a folder `00000012` of
- tokens.bin: uint16 or uint32, every token of every sentence, without special tokens.
- sentences.idx: uint32, the token at which each sentence starts.
- documents.idx: uint32, the sentence at which each document starts.
- words.bits: a bit a token, the lowest of a byte first: the token starts a word.
- shard.json: counts, and size and SHA-256 of each file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .._files import flush, read_json
from ..errors import InputFileError, StoreError

FILES = ("tokens.bin", "sentences.idx", "documents.idx", "words.bits")
SUMMARY = "shard.json"
_LARGEST = 1 << 32  # indices are uint32


class Documents(NamedTuple):
    """Some documents, tokenized.

    Fields:
        tokens: integers [T]. starts_word: bool [T].
        sentence_lengths: integers [S], tokens of each sentence, at least 1.
        document_lengths: integers [D], sentences of each document, at least 1.
    """

    tokens: np.ndarray
    starts_word: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray


def name(number: int) -> str:
    """The folder's name of a shard."""
    return f"{number:08d}"


def write_shard(folder: Path, documents: Iterable[Documents], dtype: np.dtype) -> None:
    """Write a shard's folder, which appears under its name when all of it is on the disk.

    Raises:
        OSError: a file cannot be written; what was written of the shard is removed.
        InputFileError: a slice of more than 2**32 tokens.
    """
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        summary = _write_files(temporary, documents, dtype)
        _write_synced(temporary / SUMMARY, json.dumps(summary, indent=1).encode())
        flush(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
            # A worker of a run that was killed ended it meanwhile, with the same bytes.
            shutil.rmtree(temporary)
        flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_summary(folder: Path) -> dict[str, Any]:
    """What shard.json says, when the files have the sizes that it says.

    Raises:
        StoreError: a file is missing, or of another size.
    """
    summary = read_json(folder / SUMMARY, StoreError)
    for file in FILES:
        expected = summary.get("files", {}).get(file, {}).get("bytes")
        path = folder / file
        got = path.stat().st_size if path.is_file() else None
        if got != expected:
            found = "nothing there" if got is None else f"{got} bytes"
            raise StoreError(
                f"{path}: expected a file of {expected} bytes, got {found}. The shard is damaged: "
                "run bertfast prepare again, which makes it anew."
            )
    return summary


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_raw(path: Path) -> IO[bytes]:
    """A new file whose writes reach the system at once, so that what fails is told where it is written."""
    return open(path, "wb", buffering=0)


class _Writer:
    """A file that is hashed as it is written; errors name it."""

    def __init__(self, path: Path):
        self.path, self.size, self.hash = path, 0, hashlib.sha256()
        self._handle = open_raw(path)

    def write(self, values: np.ndarray) -> None:
        data = memoryview(values.tobytes())
        self.hash.update(data)
        self.size += len(data)
        try:
            while data:
                data = data[self._handle.write(data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> None:
        try:
            os.fsync(self._handle.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        self._handle.close()

    def summary(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.hash.hexdigest()}


def _write_files(folder: Path, documents: Iterable[Documents], dtype: np.dtype) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        writers = {file: _Writer(folder / file) for file in FILES}
        for writer in writers.values():
            stack.callback(writer.close)
        counts = _write_documents(writers, documents, dtype)
        for writer in writers.values():
            writer.sync()
    return {**counts, "files": {file: writer.summary() for file, writer in writers.items()}}


def _write_documents(
    writers: dict[str, _Writer], documents: Iterable[Documents], dtype: np.dtype
) -> dict[str, int]:
    counts = {"documents": 0, "sentences": 0, "tokens": 0}
    bits = np.empty(0, dtype=bool)  # fewer than eight, between blocks
    for block in documents:
        writers["tokens.bin"].write(block.tokens.astype(dtype))
        writers["sentences.idx"].write(_starts(block.sentence_lengths, counts["tokens"]))
        writers["documents.idx"].write(_starts(block.document_lengths, counts["sentences"]))
        bits = np.concatenate([bits, block.starts_word])
        whole = len(bits) // 8 * 8
        writers["words.bits"].write(np.packbits(bits[:whole], bitorder="little"))
        bits = bits[whole:]
        counts["documents"] += len(block.document_lengths)
        counts["sentences"] += len(block.sentence_lengths)
        counts["tokens"] += len(block.tokens)
        if counts["tokens"] >= _LARGEST:
            raise InputFileError(
                "A slice of the input has more than 2**32 tokens: make the text file without blank lines, or the row "
                "group of the parquet file, smaller."
            )
    writers["words.bits"].write(np.packbits(bits, bitorder="little"))
    return counts


def _starts(lengths: np.ndarray, first: int) -> np.ndarray:
    """Where each of consecutive things starts, uint32."""
    return (first + np.cumsum(lengths, dtype=np.int64) - lengths).astype(np.uint32)


def _write_synced(path: Path, data: bytes) -> None:
    with contextlib.closing(_Writer(path)) as writer:
        writer.write(np.frombuffer(data, dtype=np.uint8))
        writer.sync()
