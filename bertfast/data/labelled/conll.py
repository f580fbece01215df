"""CoNLL files: a word and its tags a line, blank lines between sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from ...errors import InputFileError
from ...text.readers import lines

_BLANKS = " \t\r\n"  # not str.strip()'s: a word may be a no-break space
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Sentences:
    """Sentences of words with a tag each.

    Fields:
        name: of the file.
        words, tags: of each sentence, as many of both.
        numbers: the line of each sentence's first word.
    """

    name: str
    words: list[list[str]]
    tags: list[list[str]]
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.words)


def read_conll(path: str | os.PathLike[str], word: int = 0, tag: int = -1) -> Sentences:
    """The sentences of a file. Lines that begin with -DOCSTART- are passed over.

    Args:
        word, tag: the columns, counted from 0, or from the end below 0. Columns are parted by a tab where the first
            line has one, else by blanks.

    Raises:
        InputFileError: the file cannot be read or has no sentence; a line has another number of columns than the first
            one, an empty word or tag, or there is no such column.
    """
    name = os.fspath(path)
    found = Sentences(name, [], [], [])
    words: list[str] | None = None  # of the sentence that is read
    try:
        with open(name, "rb") as handle:
            for number, row in _rows(handle, name):
                if row is None:
                    words = None
                    continue
                _check(f"{name}, line {number}", row, word, tag)
                if words is None:
                    words, tags = [], []
                    found.words.append(words)
                    found.tags.append(tags)
                    found.numbers.append(number)
                words.append(row[word])
                tags.append(row[tag])
    except OSError as error:
        raise InputFileError(f"{name}: cannot be read, {error.strerror}.") from error
    if not found.words:
        raise InputFileError(f"{name}: expected sentences, got none.")
    return found


def _rows(handle: IO[bytes], name: str) -> Iterator[tuple[int, list[str] | None]]:
    """(line, its columns), None between sentences."""
    tabs, width = False, 0
    for number, line in enumerate(lines(handle, name), 1):
        line = line.rstrip("\r\n")
        if not line.strip(_BLANKS) or line.startswith(_DOCUMENT):
            yield number, None
            continue
        tabs = tabs or (not width and "\t" in line)
        row = line.split("\t") if tabs else re.split(" +", line.strip(" "))
        width = width or len(row)
        if len(row) != width:
            raise InputFileError(
                f"{name}, line {number}: expected {width} columns as before, got {len(row)}."
            )
        yield number, row


def _check(place: str, row: Sequence[str], word: int, tag: int) -> None:
    if len(row) < 2:
        raise InputFileError(f"{place}: expected a word and a tag, got one column {row[0]!r:.40}.")
    for what, index in (("word", word), ("tag", tag)):
        if not -len(row) <= index < len(row):
            raise InputFileError(
                f"{place}: expected a column {index} for the {what}, got {len(row)} columns."
            )
        if not row[index].strip(_BLANKS):
            raise InputFileError(f"{place}: expected a {what}, got an empty column.")
