"""Compiled things that many tests need: made by the process that comes first, kept for all others and later runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

FOLDER = Path(tempfile.gettempdir()) / f"gpu-code-{os.getuid()}"


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder of that name; where there is none, `make(path)` makes one while other processes wait.

    name: tells apart what is made of different sources, flags and compilers.
    """
    path = FOLDER / name
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"), tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        if not path.exists():
            make(Path(folder, name))
            Path(folder, name).rename(path)  # whole or not at all
    return path
