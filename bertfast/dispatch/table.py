"""What was measured, in a file for the next process: one small JSON file a device and set of versions.

It lies under the user's cache folder. A file that is torn, foreign or of other versions counts as empty and is written
anew. Writers merge what others wrote in the meantime, under a lock where the system has one, and replace the file
whole. Where the folder cannot be written to, what was measured holds for the process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from .. import extension
from . import forms

try:
    import fcntl
except (
    ImportError
):  # Windows: the last writer of two may lose the other's lines, and measures them again
    fcntl = None

logger = logging.getLogger("bertfast")
_FORMAT = 1
_LOCK_S = 2.0  # a writer needs milliseconds; whoever holds the lock for longer has stopped


class Decision(NamedTuple):
    """The outcome of one measurement.

    Fields:
        form: the winner. seconds: the median time of each form that was right.
        struck_off: forms that may not run here, and why.
        lasting: whether it may be kept for other processes (running out of memory is this one's affair).
    """

    form: str
    seconds: dict[str, float]
    struck_off: dict[str, str]
    lasting: bool = True


def folder() -> Path:
    """Where the tables lie. Raises RuntimeError where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bertfast" / "dispatch"


def identity(device: torch.device) -> dict[str, str]:
    """What a measurement on the device may depend on besides its key; a table of another identity is not used."""
    found = {
        "bertfast": importlib.import_module("bertfast").__version__,
        "torch": torch.__version__,
        "triton": version("triton"),
    }
    if device.type == "cuda":
        driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: "unknown")()
        cuda = {"device": torch.cuda.get_device_name(device), "cuda driver": str(driver)}
        return {**found, **cuda, "kernel driver": _first_line("/proc/driver/nvidia/version")}
    native = extension.describe()
    return {**found, "device": _processor(), "instruction set": str(native["active"])}


def path_of(found: dict[str, str]) -> Path:
    """The file of the table with an identity. Raises RuntimeError where the user has no home."""
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
    device = re.sub(r"[^A-Za-z0-9]+", "-", found["device"]).strip("-")[:60]
    return folder() / f"{device}-{digest}.json"


class Table:
    """The measurements of one device: read once, written with every new one."""

    def __init__(self, identity: dict[str, str]):
        self.identity = identity
        self.decisions: dict[str, Decision] = {}
        self._read_at = -float("inf")
        try:
            self.path: Path | None = path_of(identity)
        except RuntimeError:  # no home
            self.path = None
        self.refresh()

    def refresh(self, every_s: float = 0.0) -> None:
        """Read the file again, at most every so many seconds."""
        if self.path is not None and time.monotonic() - self._read_at >= every_s:
            self._read_at = time.monotonic()
            self.decisions = {**self.decisions, **self._read()}

    def add(self, key: str, decision: Decision, replace: bool = False) -> Decision:
        """Keep a decision, and write it down if it lasts.

        Returns the one that holds now: what another process wrote for the key in the meantime stays, so that all
        agree, unless `replace`.
        """
        self.decisions[key] = decision
        if self.path is None or not decision.lasting:
            return decision
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                written = self._read()
                if replace or key not in written:
                    written[key] = decision
                    self._write(written)
        except OSError as error:
            _say_once(f"{self.path}: {error.strerror or error}")
            return decision
        self.decisions |= written
        return written[key]

    def _read(self) -> dict[str, Decision]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # not there, or torn
            return {}
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            return {}
        lines = found.get("measured")
        if found.get("identity") != self.identity or not isinstance(lines, dict):
            return {}
        read = {key: _decision(line) for key, line in lines.items()}
        return {key: decision for key, decision in read.items() if decision is not None}

    def _write(self, decisions: dict[str, Decision]) -> None:
        lines = {
            key: {
                "form": decision.form,
                "microseconds": {k: round(s * 1e6, 2) for k, s in decision.seconds.items()},
                "struck_off": decision.struck_off,
            }
            for key, decision in sorted(decisions.items())
        }
        content = {"format": _FORMAT, "identity": self.identity, "measured": lines}
        number, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def _decision(line: object) -> Decision | None:
    """A decision as it was written, or None if it is none."""
    if not isinstance(line, dict) or line.get("form") not in forms.NAMES:
        return None
    times, struck_off = line.get("microseconds"), line.get("struck_off")
    if not isinstance(times, dict) or not isinstance(struck_off, dict):
        return None
    numbers = all(isinstance(value, int | float) for value in times.values())
    if not numbers or line["form"] in struck_off:
        return None
    seconds = {name: value / 1e6 for name, value in times.items()}
    return Decision(line["form"], seconds, {k: str(v) for k, v in struck_off.items()})


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock; after `_LOCK_S` go on without, as a lock that is never given back must not stop the caller."""
    if fcntl is None:
        yield
        return
    with open(path, "a", encoding="utf-8") as file:
        end = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    break
                time.sleep(0.005)
            except OSError:  # a file system without locks
                break
        yield


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("measurements are not kept for the next process: %s", reason)


def version(package: str) -> str:
    """The installed version of a package, without importing it; "none" if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return "unknown"


def _processor() -> str:
    """The model of the CPU, as the system names it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("model name", "CPU part")):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
