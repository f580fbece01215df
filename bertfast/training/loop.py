"""The loop: steps of a task's examples through a model, on one process or many, resumed at any step bit for bit.

A step is N sequences, whatever the number of processes and of micro-batches: every draw is a function of the seed, the
step and the example, losses are divided by the totals of the whole step, and dropout counts by the examples' ids.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.order import Order, Piece
from ..data.philox import Purpose, draw
from ..errors import RunError
from . import flops, ranks
from .processes import Processes
from .recipe import Settings
from .schedules import learning_rate, sequences


class Task(Protocol):
    """What is trained for: `tasks.pretraining.Pretraining`, `tasks.supervised.Supervised`."""

    def examples(self, epoch: int) -> int: ...
    def lengths(self, epoch: int) -> np.ndarray: ...
    def totals(self, pieces: Sequence[Piece]) -> dict[str, int]: ...
    def batch(self, pieces: Sequence[Piece]) -> Any: ...
    def loss(
        self, model: nn.Module, batch: Any, totals: Mapping[str, int], measured: bool
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def metrics(
        self, counted: Mapping[str, float], totals: Mapping[str, int]
    ) -> dict[str, float]: ...


class Done(NamedTuple):
    """What a step did.

    Fields:
        step: its number in the run, from 1. metrics: those of the task. norm: of the gradient.
        tokens: real ones of all processes. flops: of all processes. seconds: it took. rate: learning rate.
    """

    step: int
    metrics: dict[str, float]
    norm: float
    tokens: int
    flops: float
    seconds: float
    rate: float


class Plan(NamedTuple):
    """What a step is made of.

    Fields:
        phase: its number. mine: the micro-batches of a process, each of one epoch's examples or, at a border, of two.
        lengths: of all sequences of the step. totals: of the task.
    """

    phase: int
    mine: list[list[Piece]]
    lengths: np.ndarray
    totals: dict[str, int]


class Steps:
    """What each step of a run is made of: a function of the settings and the number of processes.

    Args:
        settings: what to do. tasks: of each phase. config: a BertConfig, whose sizes say what a sequence costs.
        starts: of each phase's epochs, as far as known (`Order.starts`).
    """

    def __init__(
        self,
        settings: Settings,
        tasks: Sequence[Task],
        config: Any,
        starts: Sequence[list[int]] | None = None,
    ):
        self.settings, self.tasks, self.config = settings, tasks, config
        known = starts or [None] * len(tasks)
        self.orders = [
            Order(task.examples, settings.seed, sequences(settings, phase), start)
            for task, phase, start in zip(tasks, settings.phases, known, strict=True)
        ]
        self._ends = np.cumsum([phase.steps for phase in settings.phases])

    def phase_of(self, step: int) -> tuple[int, int]:
        """The phase of a step, from 0, and the step's number in it; a budget goes on in the last phase."""
        phase = min(int(np.searchsorted(self._ends, step, side="right")), len(self._ends) - 1)
        return phase, step - (int(self._ends[phase - 1]) if phase else 0)

    def plan(self, step: int, rank: int, count: int) -> Plan:
        """A step, from 0, as process `rank` of `count` has it."""
        phase, inner = self.phase_of(step)
        task, pieces = self.tasks[phase], self.orders[phase].step(inner)
        lengths = np.concatenate([task.lengths(piece.epoch)[piece.indices] for piece in pieces])
        epochs = np.concatenate([np.full(len(piece.indices), piece.epoch) for piece in pieces])
        indices = np.concatenate([piece.indices for piece in pieces])
        cost = ranks.work(lengths, self.config)
        most = self.settings.phases[phase].micro_tokens
        mine = ranks.parts_of_step(lengths, cost, count, most)[rank]
        parts = [
            [Piece(int(e), indices[places[epochs[places] == e]]) for e in np.unique(epochs[places])]
            for places in mine
        ]
        return Plan(phase, parts, lengths, task.totals(pieces))


class Loop:
    """Steps through a model.

    Args:
        steps: what they are made of. model: BERT with its heads, not wrapped.
        wrapped: what `processes.wrap` gave. optimizer: of its parameters.
    """

    def __init__(
        self,
        steps: Steps,
        model: nn.Module,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
    ):
        self.steps, self.settings, self.model, self.wrapped = steps, steps.settings, model, wrapped
        self.optimizer, self.processes = optimizer, processes
        self.seconds = 0.0  # that training took

    def run(self, first: int = 0) -> Iterator[Done]:
        """The steps from `first` on, each when it is done; what `Done.step` says is the number of steps done then.

        Raises:
            RunError: a loss or gradient is not finite; the weights are those before the step.
        """
        step = first
        self.wrapped.train()
        while self.done(step) < 1:
            began = time.perf_counter()
            found = self._step(step)
            seconds = time.perf_counter() - began
            if self.settings.budget is not None:  # all have to end together
                seconds = self.processes.of_first(seconds)
            self.seconds += seconds
            step += 1
            yield found._replace(seconds=seconds)

    def done(self, step: int) -> float:
        """Share of the run that lies before a step: of its steps, or of its time."""
        budget = self.settings.seconds()
        return step / self.settings.steps if budget is None else self.seconds / budget

    def _step(self, step: int) -> Done:
        settings, processes = self.settings, self.processes
        plan = self.steps.plan(step, processes.rank, processes.count)
        task = self.steps.tasks[plan.phase]
        rate = learning_rate(settings, self.done(step))
        measured = bool(settings.log_every) and (step + 1) % settings.log_every == 0
        seed = dropout_seed(settings.seed, step)
        self.optimizer.zero_grad(set_to_none=True)
        counted: dict[str, Tensor] = {}
        for batch, last in _ahead(task, plan.mine, processes.device):
            with processes.accumulating(self.wrapped, last), self._precision():
                torch.manual_seed(seed)
                loss, counts = task.loss(self.wrapped, batch, plan.totals, measured and last)
            with processes.accumulating(self.wrapped, last):
                # torch's wrappers take the mean over processes, and this loss is a part of the sum
                (loss * processes.count).backward()
            add(counted, counts)
        counts = summed(counted, processes)
        norm = self._clip()
        metrics = task.metrics(counts, plan.totals)
        if not all(map(math.isfinite, (*metrics.values(), norm))):
            raise RunError(
                f"step {step + 1}: the loss is {metrics['loss']:g} and the gradient's norm {norm:g}. The weights are "
                "still those of the step before; try a lower learning_rate, a longer warmup, or float32."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        work = flops.training_flops(self.model.config, plan.lengths, plan.totals.get("labels", 0))
        return Done(step + 1, metrics, norm, int(plan.lengths.sum()), work, 0.0, rate)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def _clip(self) -> float:
        most = self.settings.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), most)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def add(counted: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add the counts of a batch, in float64, where they are."""
    for name, value in more.items():
        counted[name] = counted.get(name, 0.0) + value.double()


def summed(counted: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """Counts over all processes; some may be on the host, others where the model is."""
    values = [counted[name].to(processes.device) for name in sorted(counted)]
    values = processes.sum(torch.stack(values))
    return dict(zip(sorted(counted), values.tolist(), strict=True))


def dropout_seed(seed: int, step: int) -> int:
    """The seed of torch's generator for every micro-batch of a step; examples differ by their ids."""
    high, low, *_ = draw(seed, Purpose.DROPOUT, 0, np.array([step]))
    return int(high[0]) << 31 | int(low[0]) >> 1


def _ahead(
    task: Task, parts: Sequence[Sequence[Piece]], device: torch.device
) -> Iterator[tuple[Any, bool]]:
    """The batches of a step, each made while the one before is computed; and whether it is the last."""
    with ThreadPoolExecutor(1) as worker:
        made = worker.submit(task.batch, parts[0])
        for i in range(len(parts)):
            batch = made.result()
            if i + 1 < len(parts):
                made = worker.submit(task.batch, parts[i + 1])
            yield batch.to(device), i + 1 == len(parts)
