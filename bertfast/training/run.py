"""A run of pretraining in a folder: begun, gone on with where it stopped, saved, told."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from .._files import read_json, write_json
from ..checkpoint.hub import require
from ..data.store import Store
from ..dispatch import decisions
from ..errors import ArgumentError, CheckpointError, RunError
from ..tasks.pretraining import Pretraining
from ..tuning.table import lines_of, share
from . import flops, state
from .evaluation import evaluate
from .log import Log, draw_curves
from .loop import Loop, Steps
from .optimizers import make_optimizer
from .processes import Processes
from .recipe import Recipe

RECIPE = "recipe.json"
FINAL = "model"
_LOCK = ".lock"
_FREE = ("log_every", "evaluate_every", "evaluate_examples", "save_every", "keep")  # may change

logger = logging.getLogger("bertfast")


class Stopped(Exception):
    """A signal ended the run, after a checkpoint. `step`: of steps that are done. `number`: of the signal."""

    def __init__(self, step: int, number: int):
        self.step, self.number = step, number
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")


def pretrain(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Train as a recipe says; a folder in which that was begun is gone on with, from its newest checkpoint.

    Started by torchrun, all processes train together; each calls this.

    Args:
        folder: of the run: checkpoints/, log.jsonl, tensorboard/, curves.svg, and in the end model/.
        say: takes lines for the terminal, in the first process.

    Returns: the folder of the model, which transformers and bertfast load, with its tokenizer.

    Raises:
        Stopped: SIGTERM or SIGINT came; a checkpoint of that step is there.
        RunError: another process trains there, the folder is another recipe's, or a loss is not finite.
        StoreError, CheckpointError: what is to be read is damaged, or does not fit.
        OSError: the disk is full; the checkpoint before is as it was.
    """
    folder, processes = Path(folder), Processes(device)
    try:
        with _locked(folder, processes), _signals() as came:
            return _run(recipe, folder, processes, say if processes.first else _silent, came)
    finally:
        processes.close()


def _run(
    recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None], came: list[int]
) -> Path:
    store = Store.open(recipe.store)
    if processes.first:
        _check_recipe(recipe, folder)
        state.tidy(folder)
    if processes.count > 1 and processes.device.type == "cuda":
        share(processes.device)
    saved = processes.of_first(state.newest(folder) if processes.first else None)
    if saved is not None:
        _resume_settings(saved, store, processes, say)
    tasks = make_tasks(recipe, store)
    if (least := min(phase.batch for phase in recipe.phases)) < processes.count:
        raise ArgumentError("batch", f"at least {processes.count}, the processes", str(least))
    model = make_model(recipe, store, None if saved is None else saved.folder / state.MODEL)
    model.to(processes.device)
    wrapped = processes.wrap(model, recipe.sharding)
    optimizer = make_optimizer(recipe, model)
    held = {} if saved is None else saved.state
    steps = Steps(recipe, tasks, model.config, held.get("starts"))
    loop = Loop(steps, model, wrapped, optimizer, processes)
    if saved is not None:
        state.load_optimizer(saved.folder / state.OPTIMIZER, model, optimizer)
        loop.seconds = held["seconds"]
    with _logging(folder, held.get("step", 0), processes, say) as log:
        run = _Run(recipe, folder, store, loop, log, processes, say, came)
        return run.go(held.get("step", 0))


class _Run:
    """The steps, and what comes between them."""

    def __init__(self, recipe, folder, store, loop, log, processes, say, came):
        self.recipe, self.folder, self.store, self.loop = recipe, folder, store, loop
        self.log, self.processes, self.say, self.came = log, processes, say, came
        self.saved = None

    def go(self, first: int) -> Path:
        step, total = first, "" if self.recipe.budget else f"/{self.recipe.steps}"
        for done in self.loop.run(first):
            step = done.step
            if self.log is not None:
                self.log.count(done)
                if "masked_lm_accuracy" in done.metrics or self._due("log_every", step):
                    self.log.step(done, total)
            if self._due("evaluate_every", step):
                self._evaluate(step)
            number = self.processes.of_first(self.came[0] if self.came else None)
            if number is not None:
                self._save(step)
                raise Stopped(step, number)
            if self._due("save_every", step):
                self._save(step)
        if self.saved != step:
            self._save(step)
        return self._finish(step)

    def _due(self, name: str, step: int) -> bool:
        every = getattr(self.recipe, name)
        return bool(every) and step % every == 0

    def _evaluate(self, step: int) -> None:
        phase, _ = self.loop.steps.phase_of(step - 1)
        task = make_task(self.recipe, self.store, phase, "held-out")
        found = evaluate(task, self.loop.wrapped, self.recipe.evaluate_examples, self.processes)
        self.loop.wrapped.train()
        if self.log is not None:
            self.log.evaluation(step, found)

    def _save(self, step: int) -> None:
        model, first = self.loop.model, self.processes.first
        weights = {name: state.whole(t) for name, t in model.state_dict().items()}

        def save(folder: Path) -> None:
            save_model(model, weights, self.store, folder / state.MODEL)
            state.save_optimizer(folder / state.OPTIMIZER, model, self.loop.optimizer)

        if first:
            self.log.flush()
            state.write(self.folder, step, self._about(step), save)
            state.tidy(self.folder, self.recipe.keep)
        elif self.processes.count > 1:
            state.save_optimizer(None, model, self.loop.optimizer)
        self.processes.barrier()
        self.saved = step

    def _about(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "seconds": self.loop.seconds,
            "starts": [order.starts for order in self.loop.steps.orders],
            "store": self.store.fingerprint,
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
            newest = self.folder / state.FOLDER / f"step-{step:08d}" / state.MODEL
            temporary = self.folder / f".{FINAL}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(newest, temporary)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            draw_curves(self.folder)
            self.say(f"{target}: the model after {step} steps")
        self.processes.barrier()
        return target


def make_tasks(recipe: Recipe, store: Store) -> list[Pretraining]:
    """Of each phase."""
    return [make_task(recipe, store, phase, "train") for phase in range(len(recipe.phases))]


def make_task(recipe: Recipe, store: Store, phase: int, part: str) -> Pretraining:
    """The examples of a phase, train or held-out."""
    names = ("seed", "next_sentence", "hard", "short", "masking", "held_out")
    options = {name: getattr(recipe, name) for name in names}
    return Pretraining(store, length=recipe.phases[phase].length, part=part, **options)


def make_config(recipe: Recipe, store: Store) -> Any:
    """The BertConfig of the recipe's model.

    Raises:
        ArgumentError: it is none, or has too few positions for a phase.
    """
    from transformers import BertConfig

    try:
        if recipe.model is not None:
            config = BertConfig.from_pretrained(recipe.model)
        else:
            fields = {"vocab_size": store.vocab_size, "pad_token_id": store.pad}
            config = BertConfig(**{**recipe.config, **fields})
    except (TypeError, ValueError, OSError) as error:
        name = "config" if recipe.model is None else "model"
        raise ArgumentError(name, "what makes a BertConfig", str(error)) from error
    longest, positions = max(p.length for p in recipe.phases), config.max_position_embeddings
    if longest > positions:
        raise ArgumentError("phases: length", f"at most {positions}, the positions", str(longest))
    return config


def make_model(recipe: Recipe, store: Store, folder: Path | None = None) -> nn.Module:
    """BERT with the heads of pretraining: of a checkpoint's folder, of the recipe's model, or new by its config.

    Raises:
        StoreError: the recipe's model has another vocabulary than the store.
        ArgumentError: see `make_config`.
    """
    from ..models import heads

    kind = heads.BertForPreTraining if recipe.next_sentence else heads.BertForMaskedLM
    config = make_config(recipe, store)
    torch.manual_seed(recipe.seed)  # for what is new
    if folder is None and recipe.model is None:
        try:
            model = kind(config)
        except ValueError as error:
            raise ArgumentError("config", "what makes a model", str(error)) from error
    else:
        if folder is None:
            store.check_vocabulary(recipe.model)
        with _quiet():
            model = kind.from_pretrained(folder or recipe.model, dtype=torch.float32)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def save_model(model: nn.Module, weights: dict[str, Any], store: Store, folder: Path) -> None:
    """As transformers saves it, with the store's tokenizer."""
    with _quiet():
        model.save_pretrained(folder, state_dict=weights)
    for path in store.tokenizer_folder.iterdir():
        shutil.copy(path, folder / path.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports weights that are new as a table, which a recipe's heads are, and draws bars for seconds."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def _resume_settings(saved: state.Saved, store: Store, processes: Processes, say: Any) -> None:
    held = saved.state
    if held["store"] != store.fingerprint:
        raise RunError(
            f"{saved.folder}: was trained on another store than {store.folder} is now. Give the run a new folder."
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


def _check_recipe(recipe: Recipe, folder: Path) -> None:
    """A folder is one recipe's."""
    path, now = folder / RECIPE, recipe.as_dict()
    if path.is_file():
        before = read_json(path, CheckpointError)
        different = [k for k in now if k not in _FREE and before.get(k) != _plain(now[k])]
        if different:
            name = different[0]
            raise RunError(
                f"{folder}: begun with another recipe, {name} was {before.get(name)!r} and is {now[name]!r}. Give "
                "the run a new folder, or go on with the recipe in it."
            )
    write_json(path, now)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _locked(folder: Path, processes: Processes) -> Iterator[None]:
    """Alone on a folder, which is made."""
    filelock = require("filelock", "Training")
    if not processes.first:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / _LOCK, timeout=0):
            yield
    except filelock.Timeout as error:
        raise RunError(f"{folder}: another run trains there. Wait for its end.") from error


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
    peak = flops.peak(processes.device)
    log = Log(folder, step, None if peak is None else peak * processes.count, say)
    try:
        yield log
    finally:
        log.close()


def _silent(line: str) -> None:
    pass
