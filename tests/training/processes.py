"""Runs in processes of their own, forked so that the imports are made once; test_run.py reads what they left.

python processes.py killed STORE FOLDER      a run undisturbed, and runs killed at six moments and gone on with
python processes.py together STORE FOLDER    one process beside two, DDP and FSDP2
python processes.py finetuned TOYS FOLDER    fine-tuning undisturbed, killed, stopped, and by two processes
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from bertfast.models import heads as _heads  # noqa: F401, imported before the forks
from bertfast.models.finetuning import load_finetuned
from bertfast.tasks import report
from bertfast.training import loop, optimizers, run, state
from bertfast.training.finetuning import finetune
from bertfast.training.pretraining import pretrain
from bertfast.training.recipe import Recipe
from bertfast.training.run import Stopped
from harness import toys
from training.runs import recipe_of

LOSSES = "losses.json"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Die instead of a call for which `when` holds."""
    original = getattr(owner, name)

    def called(*args, **kwargs):
        if when(*args, **kwargs):
            die()
        return original(*args, **kwargs)

    setattr(owner, name, called)


def after(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Die after it."""
    original = getattr(owner, name)

    def called(*args, **kwargs):
        result = original(*args, **kwargs)
        if when(*args, **kwargs):
            die()
        return result

    setattr(owner, name, called)


def seventh() -> Callable[..., bool]:
    count = [0]

    def when(*_, **__):
        count[0] += 1
        return count[0] == 7

    return when


def half_removed(path: Any, *_, **__) -> bool:
    if str(path).endswith(".old.tmp") and Path(path).exists():
        (Path(path) / state.HASHES).unlink()
        return True
    return False


def second(source: Any, target: Any) -> bool:
    return "step-00000008" in str(target) and not str(target).endswith(".tmp")


MOMENTS: dict[str, Callable[[], None]] = {
    "in a step": lambda: before(loop.Loop, "_clip", seventh()),
    "after the optimizer": lambda: after(optimizers.AdamW, "step", seventh()),
    "in a write": lambda: before(state, "save_optimizer", lambda path, *_: "00000008" in str(path)),
    "before the rename": lambda: before(state.os, "rename", second),
    "after the rename": lambda: after(state.os, "rename", second),
    "while an old one is removed": lambda: before(state.shutil, "rmtree", half_removed),
}


def forked(work: Callable[[], None]) -> int:
    """The status of a child that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed(recipe: Recipe, folder: Path) -> None:
    found = {"undisturbed": [forked(lambda: pretrain(recipe, folder / "undisturbed"))]}
    for name, prepare in MOMENTS.items():

        def first(prepare=prepare, name=name):
            prepare()
            pretrain(recipe, folder / name)

        again = lambda name=name: pretrain(recipe, folder / name)  # noqa: E731
        found[name] = [forked(first), forked(again)]
    (folder / "killed.json").write_text(json.dumps(found))


def losses(
    recipe: Any, folder: Path, stop: int | None = None, train: Callable[..., Any] = pretrain
) -> None:
    """A run whose losses are kept, by its first process; stopped by SIGTERM after a step."""
    found, step = [], loop.Loop._step

    def noted(self, number):
        done = step(self, number)
        found.append([done.step, done.metrics["loss"], done.norm])
        if done.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    loop.Loop._step = noted
    try:
        train(recipe, folder)
    except Stopped:
        assert stop is not None
    if int(os.environ.get("RANK", 0)) == 0:
        path = folder / LOSSES
        earlier = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps(earlier + found))


def two(
    recipe: Any, folder: Path, stop: int | None = None, train: Callable[..., Any] = pretrain
) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            )  # fmt: skip
            status = 0
            try:
                losses(recipe, folder, stop, train)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                status = 1
            os._exit(status)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def together(recipe: Recipe, folder: Path) -> None:
    status = {"one": [forked(lambda: losses(recipe, folder / "one"))]}
    for sharding in ("ddp", "fsdp"):
        own = recipe_of(Path(recipe.store), **{**TWENTY, "sharding": sharding})
        status[sharding] = two(own, folder / sharding, stop=12)
        status[sharding].append(forked(partial(losses, own, folder / sharding)))
    (folder / "together.json").write_text(json.dumps(status))


def finetuned(recipe: Any, folder: Path) -> None:
    """12 steps; the dropout of a step, its examples and what dev says of three epochs are the same in all of these."""
    run.draw_curves = report.draw_confusion = lambda *_: None  # pictures take longer than all else
    load_finetuned(Path(recipe.model), "BertForPreTraining")  # what transformers reads once
    train = partial(finetune, say=lambda line: None)
    again = lambda name: forked(lambda: train(recipe, folder / name))  # noqa: E731
    status = {"undisturbed": [forked(lambda: losses(recipe, folder / "undisturbed", None, train))]}
    for name in FINETUNED:

        def first(name=name):
            MOMENTS[name]()
            train(recipe, folder / name)

        status[name] = [forked(first), again(name)]
    stopped = partial(losses, recipe, folder / "stopped", 6, train)
    status["stopped"] = [forked(stopped), again("stopped")]
    status["two"] = two(recipe, folder / "two", None, train)
    (folder / "finetuned.json").write_text(json.dumps(status))


FINETUNED = ("in a step", "before the rename")  # moments of a kill


# Each step's sequences in two or more parts; 20 steps, in two lengths.
TWENTY = {
    "phases": [
        {"length": 24, "steps": 14, "batch": 9, "micro_tokens": 60},
        {"length": 48, "steps": 6, "batch": 7, "micro_tokens": 120},
    ],
    "save_every": 0,
}


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    what, where, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "finetuned":
        train = toys.write_examples(where, "pair")
        finetuned(toys.recipe_of("pair", train, where / "model", **toys.TWELVE), target)
    elif what == "killed":
        killed(recipe_of(where, keep=1), target)
    else:
        together(recipe_of(where, **TWENTY), target)
