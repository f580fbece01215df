"""A run of training in a folder: begun, gone on with where it stopped, saved, told."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import __version__
from .._files import alone, read_json, write_json
from ..dispatch import decisions
from ..errors import ArgumentError, CheckpointError, RunError
from ..tuning.table import lines_of, share
from . import flops, state
from .log import Log, draw_curves
from .loop import Loop, Steps, Task
from .optimizers import make_optimizer
from .processes import Processes
from .recipe import Settings

RECIPE = "recipe.json"
FINAL = "model"
_FREE = ("log_every", "evaluate_every", "evaluate_examples", "save_every", "keep")  # may change

logger = logging.getLogger("bertfast")


class Stopped(Exception):
    """A signal ended the run, after a checkpoint. `step`: of steps that are done. `number`: of the signal."""

    def __init__(self, step: int, number: int):
        self.step, self.number = step, number
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")


class Job(Protocol):
    """What a run is for.

    Attributes:
        settings: how it trains. free: names of settings besides those of telling and saving that may be others when the
            run is gone on with.
        fingerprint: of the data. tasks: of each phase.
        patience: evaluations without a better score after which the run ends; 0: it goes on.
    """

    settings: Settings
    free: tuple[str, ...]
    fingerprint: str
    tasks: Sequence[Task]
    patience: int

    def make_model(self, folder: Path | None) -> nn.Module:
        """The model to begin with, or that of a checkpoint's folder."""

    def save_model(self, model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        """Put the model with these weights into a new folder, with all that is needed to use it."""

    def evaluate(self, step: int, loop: Loop) -> dict[str, float]:
        """Metrics of held-out examples after a step; the model may be left in eval mode."""

    def score(self, metrics: Mapping[str, float]) -> list[float] | None:
        """What the model that the run ends with has most of, of what `evaluate` gave, and what decides between equal
        ones; None: it is the last model."""

    def complete(self, folder: Path, device: torch.device) -> None:
        """Add to the folder of the final model, before it gets its name; in the first process, which has `device`."""


def train(
    job: Job,
    folder: Path,
    *,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Do a job in a folder; one that was begun there is gone on with, from its newest checkpoint.

    Started by torchrun, all processes train together; each calls this.

    Args:
        folder: of the run: checkpoints/, log.jsonl, tensorboard/, curves.svg, and in the end model/.
        say: takes lines for the terminal, in the first process.

    Returns: the folder of the model.

    Raises:
        Stopped: SIGTERM or SIGINT came; a checkpoint of that step is there.
        RunError: another process trains there, the folder is another recipe's, or a loss is not finite.
        CheckpointError: what is to be read is damaged, or does not fit.
        OSError: the disk is full; the checkpoint before is as it was.
    """
    processes = Processes(device)
    try:
        with _locked(folder, processes), _signals() as came:
            return _run(job, folder, processes, say if processes.first else _silent, came)
    finally:
        processes.close()


def _run(
    job: Job, folder: Path, processes: Processes, say: Callable[[str], None], came: list[int]
) -> Path:
    settings = job.settings
    if processes.first:
        _check_recipe(job, folder)
        state.tidy(folder)
    if processes.count > 1 and processes.device.type == "cuda":
        share(processes.device)
    saved = processes.of_first(state.newest(folder) if processes.first else None)
    if saved is not None:
        _resume(saved, job, processes, say)
    if (least := min(phase.batch for phase in settings.phases)) < processes.count:
        raise ArgumentError("batch", f"at least {processes.count}, the processes", str(least))
    model = job.make_model(None if saved is None else saved.folder / state.MODEL)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.to(processes.device)
    wrapped = processes.wrap(model, settings.sharding)
    optimizer = make_optimizer(settings, model)
    held = {} if saved is None else saved.state
    steps = Steps(settings, job.tasks, model.config, held.get("starts"))
    loop = Loop(steps, model, wrapped, optimizer, processes)
    if saved is not None:
        state.load_optimizer(saved.folder / state.OPTIMIZER, model, optimizer)
        loop.seconds = held["seconds"]
    with _logging(folder, held.get("step", 0), processes, say) as log:
        run = _Run(job, folder, loop, log, processes, say, came)
        run.scores = [tuple(pair) for pair in held.get("scores", [])]
        return run.go(held.get("step", 0))


class _Run:
    """The steps, and what comes between them."""

    def __init__(self, job, folder, loop, log, processes, say, came):
        self.job, self.settings, self.folder, self.loop = job, job.settings, folder, loop
        self.log, self.processes, self.say, self.came = log, processes, say, came
        self.saved = None
        self.scores: list[tuple[int, list[float]]] = []  # (step, score) of each evaluation

    def go(self, first: int) -> Path:
        step, total = first, "" if self.settings.budget else f"/{self.settings.steps}"
        self.saved = first or None
        for done in [] if self._is_over() else self.loop.run(first):
            step = done.step
            if self.log is not None:
                self.log.count(done)
                if self._due("log_every", step):
                    self.log.step(done, total)
            if self._due("evaluate_every", step):
                self._evaluate(step)
            number = self.processes.of_first(self.came[0] if self.came else None)
            if number is not None:
                self._save(step)
                raise Stopped(step, number)
            if self._due("save_every", step) or (self.scores and self.best == step):
                self._save(step)
            if self._is_over():
                self.say(f"step {step}: no better for {self.job.patience} evaluations, so it ends")
                break
        if self.saved != step:
            self._save(step)
        return self._finish(step)

    @property
    def best(self) -> int | None:
        """The first step with the highest score."""
        return max(self.scores, key=lambda pair: pair[1])[0] if self.scores else None

    def _is_over(self) -> bool:
        since = sum(step > self.best for step, _ in self.scores) if self.scores else 0
        return bool(self.job.patience) and since >= self.job.patience

    def _due(self, name: str, step: int) -> bool:
        every = getattr(self.settings, name)
        return bool(every) and step % every == 0

    def _evaluate(self, step: int) -> None:
        found = self.job.evaluate(step, self.loop)
        self.loop.wrapped.train()
        score = self.job.score(found)
        if score is not None:
            self.scores.append((step, score))
        if self.log is not None:
            self.log.evaluation(step, found)

    def _save(self, step: int) -> None:
        model, first = self.loop.model, self.processes.first
        weights = {name: state.whole(t) for name, t in model.state_dict().items()}

        def save(folder: Path) -> None:
            self.job.save_model(model, weights, folder / state.MODEL)
            state.save_optimizer(folder / state.OPTIMIZER, model, self.loop.optimizer)

        if first:
            self.log.flush()
            state.write(self.folder, step, self._about(step), save)
            state.tidy(self.folder, self.settings.keep, self.best)
        elif self.processes.count > 1:
            state.save_optimizer(None, model, self.loop.optimizer)
        self.processes.barrier()
        self.saved = step

    def _about(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "seconds": self.loop.seconds,
            "scores": self.scores,
            "starts": [order.starts for order in self.loop.steps.orders],
            "data": self.job.fingerprint,
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "tuning": self._table(),
            "versions": {"bertfast": __version__, "torch": torch.__version__},
        }

    def _table(self) -> dict[str, Any] | None:
        """What decides kernels on a GPU."""
        device = self.processes.device
        return lines_of(decisions.table(device)) if device.type == "cuda" else None

    def _finish(self, step: int) -> Path:
        target = self.folder / FINAL
        if self.processes.first:
            step = self.best or step
            checkpoint = state.folder_of(self.folder, step)
            state.verify(checkpoint)
            taken = checkpoint / state.MODEL
            temporary = self.folder / f".{FINAL}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(taken, temporary)
            self.job.complete(temporary, self.processes.device)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            draw_curves(self.folder)
            self.say(f"{target}: the model after {step} steps")
        self.processes.barrier()
        return target


def _resume(saved: state.Saved, job: Job, processes: Processes, say: Callable[[str], None]) -> None:
    held = saved.state
    if held["data"] != job.fingerprint:
        raise RunError(
            f"{saved.folder}: was trained on other data than the recipe names now. Give the run a new folder."
        )
    if processes.device.type == "cpu" and held["threads"] != torch.get_num_threads():
        say(f"{held['threads']} threads, as before; bits are the same for one number of threads")
        torch.set_num_threads(held["threads"])
    if held["processes"] != processes.count:
        say(
            f"{held['processes']} processes before, {processes.count} now: the same losses, not the same bits"
        )
    if held["tuning"] is not None and processes.device.type == "cuda":
        decisions.take_from_run(held["tuning"])
    say(f"{saved.folder}: going on after step {held['step']}")


def _check_recipe(job: Job, folder: Path) -> None:
    """A folder is one recipe's; one in which nothing was saved may begin with another."""
    now = job.settings.as_dict()
    if state.has_any(folder):
        check_same(folder, now, job.free)
    write_json(folder / RECIPE, now)


def check_same(folder: Path, now: Mapping[str, Any], free: Sequence[str]) -> None:
    """Raises RunError where a folder's run was begun with other values of a recipe than `now`, but for those that are
    `free`."""
    path = folder / RECIPE
    if not path.is_file():
        return
    before = read_json(path, CheckpointError)
    for name in now:
        if name not in (*_FREE, *free) and before.get(name) != now[name]:
            raise RunError(
                f"{folder}: begun with another recipe, {name} was {before.get(name)!r} and is {now[name]!r}. Give "
                "the run a new folder, or go on with the recipe in it."
            )


def _locked(folder: Path, processes: Processes) -> contextlib.AbstractContextManager[None]:
    if not processes.first:
        return contextlib.nullcontext()
    return alone(folder, RunError(f"{folder}: another run trains there. Wait for its end."))


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT, which end a run at the next step; the second one ends it at once."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _logging(folder: Path, step: int, processes: Processes, say: Any) -> Iterator[Log | None]:
    if not processes.first:
        yield None
        return

    def peak() -> float | None:
        found = flops.peak(processes.device)
        return None if found is None else found * processes.count

    log = Log(folder, step, peak, say)
    try:
        yield log
    finally:
        log.close()


def _silent(line: str) -> None:
    pass
