"""Writing a tuning table, and sharing one among the processes of a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from .._files import atomic_write
from ..checkpoint.hub import require
from ..dispatch import decisions
from ..dispatch.calls import Key
from ..dispatch.decisions import FORMAT, Decision

_LOCK_S = 10.0  # a writer needs milliseconds; whoever holds the lock for longer has stopped


def write(device: torch.device, found: Mapping[Key, Decision]) -> Path | None:
    """Add decisions to the user's table of a device, in place of those with equal keys; runs read them from now on.

    Returns: the file; None where the user has no home, and nothing is kept.
    Raises OSError where the folder cannot be written to, filelock.Timeout where another writer does not end.
    """
    path, identity = decisions.path_of(device), decisions.identity(device)
    if path is None:
        return None
    filelock = require("filelock", "Writing a tuning table")
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock"), timeout=_LOCK_S, poll_interval=0.01):
        lines = decisions.read(path, identity) | {key.text(): found[key] for key in found}
        content = {"format": FORMAT, "identity": identity, "decisions": lines_of(lines)}
        with atomic_write(path, "w") as file:
            json.dump(content, file, indent=1)
    decisions.forget()
    return path


def lines_of(found: Mapping[str, Decision]) -> dict[str, dict]:
    """Decisions as a file, a checkpoint or another process takes them; `decisions.take_from_run` reads them."""
    return {key: decisions.line_of(decision) for key, decision in sorted(found.items())}


def share(device: torch.device) -> None:
    """Let every process of torch.distributed decide by the table of rank 0's device; all of them call it once.

    Without it each reads its own user's file, and ranks of different machines may take different backends.
    """
    lines = [lines_of(decisions.table(device))]
    torch.distributed.broadcast_object_list(lines, src=0)
    decisions.take_from_run(lines[0])
