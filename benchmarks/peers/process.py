"""A contender's process, as its parent sees it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .engines import Job

ROOT = Path(__file__).parents[2]
LONGEST = 1800  # seconds of one command; compiling and quantizing take minutes


class ContenderFailed(Exception):
    """The contender said that it failed, or its process ended, or did not answer."""


class Process:
    """A worker (`worker.py`) with pipes to it.

    Args:
        log: a file for all that it prints.
        variables: of its environment, besides this process' own.
    """

    def __init__(self, job: Job, log: Path, variables: Mapping[str, str] | None = None):
        self.log = log
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(job.threads))
        with open(log, "a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.worker", json.dumps(job._asdict(), default=str)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "PYTHONPATH": paths, **threads, **(variables or {})},
            )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to a command.

        Raises:
            ContenderFailed: there was none, or it says that the command failed.
        """
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}, default=str) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        if not select.select([self._process.stdout], [], [], LONGEST)[0]:
            self.close()
            raise ContenderFailed(f"no answer to {do!r} in {LONGEST} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "failed" in answer:
            raise ContenderFailed(answer["failed"])
        return answer["done"]

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # a command that it did not live to read
            self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ended(self) -> ContenderFailed:
        return ContenderFailed(f"its process ended with {self._process.wait()}; see {self.log}")
