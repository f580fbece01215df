"""All contenders on one model: outputs are checked, then samples taken, load by load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from .. import models
from . import inputs
from .contenders import TRUTH, Contender
from .engines import Job
from .machine import Rates
from .process import ContenderFailed, Process
from .rounds import Race
from .transformers_bert import build_mkl_library

# What an output must keep to be timed. fp32 rounds in another order through all layers; int8 is another computation,
# of which only nonsense is refused.
LARGEST_ERROR = {"fp32": 1e-4, "int8": np.inf}
SMALLEST_COSINE = {"fp32": 0.999999, "int8": 0.5}


class Settings(NamedTuple):
    """What the command line asks for.

    Fields:
        allowed: the share of the machine's CPU time that others may take during a sample.
        most_dropped: how many samples of a contender may be dropped in a row.
        work, logs: folders for models and arrays, and for what contenders print.
        say: shows how far the run has got. save: keeps what has been found so far.
    """

    threads: int
    rounds: int
    allowed: float
    most_dropped: int
    loads: list[str]
    work: Path
    logs: Path
    say: Callable[[str], None]
    save: Callable[[], None]


class Comparison:
    """One model's results, in `found`, which is complete as far as the run has got.

    Args:
        shape: one of `inputs.SHAPES`.
        rates: the machine's, measured before each load.
    """

    def __init__(self, shape: str, settings: Settings, rates: Rates):
        self.shape, self.settings, self.rates = shape, settings, rates
        self.work = settings.work / shape
        self.work.mkdir(parents=True)
        self.model = inputs.checkpoint(shape, self.work)
        self.lengths = inputs.write(self.work / "inputs", self.model)
        self.processes: dict[str, Process] = {}
        self.found: dict[str, Any] = {"loads": {}, "memory": {}, "failed": {}}

    def run(self, contenders: Iterable[Contender]) -> None:
        """Raises TooBusy where the machine is never quiet."""
        self._compute_truth()
        with ExitStack() as stack:
            for contender in contenders:
                self._load(contender, stack)
            running = [contender for contender in contenders if contender.name in self.processes]
            for load in self.settings.loads:
                self._run_load(load, [contender for contender in running if contender.takes(load)])
                self.settings.save()
            for contender in running:
                with self._noting(contender, "memory"):
                    after = self.processes[contender.name].ask("memory")
                    self.found["memory"][contender.name]["after"] = after

    def _compute_truth(self) -> None:
        self.settings.say(f"{self.shape}: {TRUTH.name}")
        with self._start(TRUTH) as process:
            process.ask("load")
            for load in self.settings.loads:
                process.ask("prepare", load=load, output=self._output(TRUTH, load))

    def _load(self, contender: Contender, stack: ExitStack) -> None:
        """Convert the model and load it, each in a process of its own."""
        self.settings.say(f"{self.shape}: load {contender.name}")
        with self._noting(contender, "load"):
            with self._start(contender) as process:
                process.ask("convert")
            process = stack.enter_context(self._start(contender))
            process.ask("load")
            self.found["memory"][contender.name] = {"loaded": process.ask("memory")}
            self.processes[contender.name] = process

    def _run_load(self, load: str, contenders: list[Contender]) -> None:
        figures: dict[str, Any] = {}
        self.found["loads"][load] = {
            "texts": len(self.lengths[load]),
            "real_tokens": sum(self.lengths[load]),
            "contenders": figures,
        }
        for contender in contenders:
            self.settings.say(f"{self.shape} {load}: check {contender.name}")
            figures[contender.name] = self._check(contender, load)
        sound = [name for name, found in figures.items() if "failed" not in found]
        self.settings.say(f"{self.shape} {load}: {self.settings.rounds} rounds")
        self.rates.measure()
        race = Race(
            {name: self.processes[name] for name in sound},
            self.settings.allowed,
            self.settings.most_dropped,
        )
        race.run(self.settings.rounds)
        for name, timing in race.timings.items():
            figures[name].update(self._figures(load, timing.seconds))
            figures[name].update(calls=timing.calls, dropped=timing.dropped)
        for name, reason in race.failed.items():
            figures[name]["failed"] = reason

    def _check(self, contender: Contender, load: str) -> dict[str, Any]:
        """Accuracy against float64, and the reason where the contender will not be timed."""
        output = self._output(contender, load)
        try:
            self.processes[contender.name].ask("prepare", load=load, output=output)
            arrays = np.load(output), np.load(self._output(TRUTH, load))
            error, cosine = inputs.accuracy(*arrays, self.lengths[load])
        except (ContenderFailed, ValueError) as reason:
            return {"failed": str(reason)}
        found = {"max_error": error, "worst_cosine": cosine}
        precision = contender.precision
        if not (error <= LARGEST_ERROR[precision] and cosine >= SMALLEST_COSINE[precision]):
            found["failed"] = f"differs from float64 by {error:.2g}, cosine {cosine:.6f}"
        return found

    def _figures(self, load: str, seconds: list[float]) -> dict[str, Any]:
        lengths, middle = self.lengths[load], median(seconds)
        flops = models.flops_of(self.shape, lengths) / middle
        return {
            "seconds": seconds,
            "ms": middle * 1e3,
            "real_tokens_per_second": sum(lengths) / middle,
            "share_of_fma_peak": flops / self.rates.flops,
        }

    def _start(self, contender: Contender) -> Process:
        job = Job(
            engine=contender.module,
            model=self.model,
            converted=self.work / contender.slug,
            inputs=self.work / "inputs",
            threads=self.settings.threads,
            options=dict(contender.options),
        )
        library = {"LD_PRELOAD": str(build_mkl_library(self.work))} if contender.tell_mkl else {}
        return Process(job, self.settings.logs / f"{self.shape}-{contender.slug}.log", library)

    def _output(self, contender: Contender, load: str) -> Path:
        return self.work / f"{contender.slug}-{load}.npy"

    @contextmanager
    def _noting(self, contender: Contender, what: str) -> Iterator[None]:
        """A contender that fails in here is noted and left out."""
        try:
            yield
        except ContenderFailed as error:
            self.found["failed"][contender.name] = f"{what}: {error}"
