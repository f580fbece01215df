"""The plan: which steps there are, how long each may take, and how one is run.

A step is a process of its own, so that one that fails, crashes or hangs is over by itself; it is killed with all that
it started when its time is. What it had written by then stays. This file does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import report, results

DONE = "done"
TAIL = 60  # lines of a step's output that the report keeps


class Step(NamedTuple):
    """A name, which is a module of `steps`, and the minutes that it may take."""

    name: str
    title: str
    minutes: float


STEPS = (
    Step("ceilings", "Build, ceilings of copies and products, what is behind sdpa", 3),
    Step("host", "Where the time of 50 forwards goes", 3),
    Step("products", "Products of four shapes, every provider", 5),
    Step("attention", "Attention, every provider", 4),
    Step("captured", "The model captured, and the gaps between its kernels", 4),
    Step("compiled", "sdpa with torch.compile beside bertfast", 4),
    Step("passes", "Embedding and GELU", 2),
    Step("checks", "Parity, memcheck, racecheck", 4),
)
MINUTES = 30  # of all steps, and what lies between them

Command = Callable[[Step, Path, float], Sequence[str]]  # of a step, its file, its seconds


def run(
    steps: Sequence[Step], folder: Path, command: Command, minutes: float | None = None
) -> list[dict]:
    """Run the steps one after the other; the report is there after each.

    Args:
        folder: gets STEP.json and STEP.log of each step, and report.md.
        minutes: of all of them together, shared in proportion to their own; None: their own.

    Returns: what the JSON of each step holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        (folder / f"{step.name}.json").unlink(missing_ok=True)
    scale = minutes / sum(step.minutes for step in steps) if minutes else 1.0
    found = []
    for step in steps:
        seconds = 60 * step.minutes * scale
        print(f"{step.title} (at most {seconds:.0f} s) ...", flush=True)
        found.append(_run(step, folder, command, seconds))
        results.write(folder / "report.md", report.text(found))
        print(f"  {found[-1]['outcome']}, {found[-1]['seconds']:.0f} s", flush=True)
    return found


def _run(step: Step, folder: Path, command: Command, seconds: float) -> dict:
    file, log = folder / f"{step.name}.json", folder / f"{step.name}.log"
    start = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command(step, file, seconds),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            outcome = _outcome(process.wait(seconds))
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {seconds:.0f} s"
        finally:
            _kill(process)
    found = {
        "step": step.name,
        "title": step.title,
        **results.read(file),
        "outcome": outcome,
        "seconds": round(time.monotonic() - start, 1),
        "limit_seconds": round(seconds),
        "output": log.read_text(errors="replace").splitlines()[-TAIL:],
    }
    results.write_json(file, found)
    return found


def _outcome(code: int) -> str:
    if code < 0:
        return f"ended by signal {-code}"
    return {0: DONE, results.IN_PART: "done but for what failed"}.get(code, f"exit code {code}")


def _kill(process: subprocess.Popen) -> None:
    """The step and what it started; one that the driver holds is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
