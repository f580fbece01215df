"""What is known of a GPU: the user's tuning table, the table of a run, and the shipped one. Nothing here measures.

A tuning table is a small JSON file for one device and one set of versions, under the user's cache folder;
`bertfast tune` writes it (`bertfast.tuning`). One that is torn, foreign or of other versions counts as empty.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from .. import extension
from .backends import NAMES, order
from .calls import Key, key_of

FORMAT = 2
_PACKAGE = Path(__file__).resolve().parents[1]
_FROM_RUN: dict[str, Decision] | None = None


class Decision(NamedTuple):
    """What was measured for a key.

    Fields:
        backend: the winner. seconds: the least time of each backend that was right. rejected: the others, and why.
    """

    backend: str
    seconds: dict[str, float]
    rejected: dict[str, str]


# By least compute capability: (operations, least tokens, backends asked first), 16-bit dtypes. Where no card of a kind
# was timed, the order of `backends.order` holds. 90: one H100, torch 2.11, 2026-11-26.
_PRODUCTS = ("qkv_projection", "linear_gelu", "linear_layernorm", "gelu_layernorm")
SHIPPED: dict[int, tuple[tuple[tuple[str, ...], int, tuple[str, ...]], ...]] = {
    90: (
        (_PRODUCTS, 4096, ("triton:torch",)),
        (("attention", "masked_cross_entropy"), 4096, ("triton",)),
    ),
}


def shipped(key: Key | None, capability: int) -> tuple[str, ...]:
    """The backends to ask first for a key on a card of that compute capability (80 for sm_80), best first."""
    if key is None or key.dtype not in ("bfloat16", "float16"):
        return ()
    for operations, tokens, backends in SHIPPED.get(capability, ()):
        if key.operation in operations and key.tokens >= tokens:
            return backends
    return ()


def on_gpu(call: tuple) -> tuple[Decision | None, tuple[str, ...]]:
    """(what a tuning table says of a call, the backends to ask, in order)."""
    key, device = key_of(call), call.lead.device
    lines = table(device)
    known = lines.get(_text(key)) if lines and key else None
    first = (known.backend,) if known else shipped(key, _capability(device))
    return known, (*first, *(name for name in order("cuda") if name not in first))


def knows(device: torch.device) -> bool:
    """Whether any table has a line for a GPU."""
    return bool(table(device)) or _capability(device) in SHIPPED


_text = functools.lru_cache(maxsize=4096)(Key.text)


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def table(device: torch.device) -> Mapping[str, Decision]:
    """The decisions that hold on a device: those of the run, if there are any, else the user's; by `Key.text`."""
    return _users(device) if _FROM_RUN is None else _FROM_RUN


@functools.cache
def _users(device: torch.device) -> Mapping[str, Decision]:
    return read(path_of(device), identity(device))


def forget() -> None:
    """Read the user's tables anew when they are next needed: after `bertfast tune` in the same process."""
    _users.cache_clear()


def take_from_run(lines: Mapping[str, object] | None) -> None:
    """Let the lines of one table hold in this process whatever the user's file says; None: the user's again.

    For the processes of one training, which must decide alike, and for a training that goes on.
    """
    global _FROM_RUN
    _FROM_RUN = None if lines is None else _decisions(lines)


def read(path: Path | None, found: Mapping[str, str]) -> dict[str, Decision]:
    """The decisions of a file with that identity; none where it is absent, torn or of another identity."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    lines = content.get("decisions")
    if content.get("identity") != found or not isinstance(lines, dict):
        return {}
    return _decisions(lines)


def line_of(decision: Decision) -> dict:
    """A decision as a table has it."""
    microseconds = {name: round(s * 1e6, 2) for name, s in decision.seconds.items()}
    return {
        "backend": decision.backend,
        "microseconds": microseconds,
        "rejected": decision.rejected,
    }


def _decisions(lines: Mapping[str, object]) -> dict[str, Decision]:
    read = {key: _decision(line) for key, line in lines.items()}
    return {key: decision for key, decision in read.items() if decision is not None}


def _decision(line: object) -> Decision | None:
    """A decision as it was written, or None if it is none."""
    if not isinstance(line, dict) or line.get("backend") not in NAMES:
        return None
    times, rejected = line.get("microseconds"), line.get("rejected")
    if not isinstance(times, dict) or not isinstance(rejected, dict):
        return None
    numbers = all(isinstance(value, int | float) for value in times.values())
    if not numbers or line["backend"] in rejected or line["backend"] not in times:
        return None
    seconds = {name: value / 1e6 for name, value in times.items()}
    return Decision(line["backend"], seconds, {k: str(v) for k, v in rejected.items()})


def path_of(device: torch.device) -> Path | None:
    """The file of the user's table for a device; None where the user has no home."""
    found = identity(device)
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9]+", "-", found["device"]).strip("-")[:60]
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "bertfast" / "tuning" / f"{name}-{digest}.json"


def identity(device: torch.device) -> dict[str, str]:
    """What a measurement on a device may depend on besides its key; a table of another identity is not used."""
    from .. import __version__  # not there yet while the package is imported

    gpu = device.type == "cuda" and torch.cuda.is_available()
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: "unknown")()
    return {
        "bertfast": __version__,
        "torch": torch.__version__,
        "triton": version("triton"),
        "device": torch.cuda.get_device_name(device) if gpu else device.type,
        "cuda driver": str(driver) if gpu else "none",
        "kernel driver": _first_line("/proc/driver/nvidia/version"),
        "kernels": kernels(),
    }


@functools.cache
def kernels() -> str:
    """A digest of the GPU kernels of this installation."""
    files = sorted(_PACKAGE.glob("ops/**/*triton*.py"))
    native = getattr(extension.cuda, "__file__", None)
    files += [Path(native)] if native else []
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


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
