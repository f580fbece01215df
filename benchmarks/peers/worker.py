"""The process of one contender: it reads commands from stdin and answers on stdout, a line of JSON each.

    {"do": "convert"}                        make the engine's own form of the model
    {"do": "load"}                           load it
    {"do": "prepare", "load": "8x128", "output": FILE}   make a load's inputs; its outputs go to the file, .npy
    {"do": "run", "calls": 3}                a sample of three calls: seconds, and the share of CPU that others took
    {"do": "memory"}                         resident MiB, now and at the peak

An answer is {"done": result} or {"failed": "what happened"}. What libraries print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from . import cpu_time
from .engines import Base, Job


class Worker:
    """The commands, each a method that returns what the answer holds."""

    def __init__(self, job: Job):
        self.job = job
        self.engine: Base | None = None
        self.call: Callable[[], np.ndarray] | None = None

    def convert(self) -> None:
        self.job.converted.mkdir(parents=True, exist_ok=True)
        self._module().Engine.convert(self.job)

    def load(self) -> None:
        self.engine = self._module().Engine(self.job)

    def prepare(self, load: str, output: str) -> None:
        texts = self.job.inputs / f"{load}.json"
        self.engine.begin(varying=texts.exists())
        if texts.exists():
            found = json.loads(texts.read_text(encoding="utf-8"))
            self.engine.open_text()
            self.call = lambda: self.engine.encode(found)
        else:
            prepared = self.engine.prepare(dict(np.load(self.job.inputs / f"{load}.npz")))
            self.call = lambda: self.engine.forward(prepared)
        np.save(output, self.call())

    def run(self, calls: int) -> dict[str, float]:
        return cpu_time.measure(self.call, calls)._asdict()

    def memory(self) -> dict[str, float]:
        with open("/proc/self/status") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        names = {"resident": "VmRSS", "peak": "VmHWM"}
        return {name: int(fields[key].split()[0]) / 1024 for name, key in names.items()}

    def _module(self) -> Any:
        return importlib.import_module(self.job.engine)


def serve(worker: Worker, commands: TextIO, answers: TextIO) -> None:
    """Answer commands until there are no more."""
    for line in commands:
        command = json.loads(line)
        try:
            answer = {"done": getattr(worker, command.pop("do"))(**command)}
        except Exception as error:
            traceback.print_exc()
            answer = {
                "failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            }
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    paths = {name: Path(job[name]) for name in ("model", "converted", "inputs")}
    serve(Worker(Job(**{**job, **paths})), sys.stdin, answers)


if __name__ == "__main__":
    main()
