"""What a step found: tables of rows, written after every row under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path

IN_PART = 4  # exit code of a step of which something failed


class Results:
    """The JSON of a step while it runs.

    Fields:
        tables: title -> rows; a row is a dict, whose keys name the columns (with their units: see report.py).
        failures: what failed -> the error.
        skipped: what was left out -> the reason.
    """

    def __init__(self, file: Path, header: dict):
        self.file, self.header = file, header
        self.tables: dict[str, list[dict]] = {}
        self.failures: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.write()

    def add(self, table: str, **row) -> None:
        self.tables.setdefault(table, []).append(row)
        self.write()

    def skip(self, what: str, reason: str) -> None:
        self.skipped[what] = reason
        self.write()

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """A part that may fail without ending the step; one that says it is not for this device is left out."""
        try:
            yield
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0][:200]
            if _refuses(error):
                self.skip(what, first)
                return
            traceback.print_exc()
            self.failures[what] = f"{type(error).__name__}: {first}"
            self.write()

    def write(self) -> None:
        write_json(self.file, {name: value for name, value in vars(self).items() if name != "file"})


def _refuses(error: Exception) -> bool:
    from bertfast.errors import UnsupportedError  # not above: the plan imports this, but no torch

    return isinstance(error, (NotImplementedError, UnsupportedError))


def write_json(file: Path, value: dict) -> None:
    """Whole or not at all."""
    write(file, json.dumps(value, indent=1) + "\n")


def write(file: Path, text: str) -> None:
    """The same for text."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def read(file: Path) -> dict:
    """What a step wrote before it ended; {} for nothing."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return {}
