"""The paper's fine-tunings: which files each needs, where these come from, and the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ArgumentError, InputFileError
from ..tasks.form import Columns
from ..tasks.glue import TASKS
from .finetuning import FineTuning

# Devlin et al., 2019, section 4.1 and, of CoNLL-2003, appendix A.3: the best of these on dev
RATES = {
    "glue": (5e-5, 4e-5, 3e-5, 2e-5),
    "mnli": (5e-5, 4e-5, 3e-5, 2e-5),
    "ner": (5e-5, 3e-5, 2e-5),
}
ORIGINS = {
    "squad": "https://rajpurkar.github.io/SQuAD-explorer/",
    "glue": "https://gluebenchmark.com/tasks",
    "mnli": "https://gluebenchmark.com/tasks",
    "swag": "https://github.com/rowanz/swagaf, folder data",
    "ner": "https://www.clips.uantwerpen.be/conll2003/ner/, with the Reuters corpus from NIST",
}
_SQUAD = {"v1.1": {"epochs": 3, "batch": 32}, "v2.0": {"epochs": 2, "batch": 48}}
_SWAG = Columns(text="sent1", choices=tuple(f"ending{i}" for i in range(4)), prefix="sent2")


class Files(NamedTuple):
    """The files of a part of a benchmark, by what they are for: train, dev and perhaps test. there, missing: names."""

    part: str
    paths: tuple[Path, ...]
    there: tuple[str, ...]
    missing: tuple[str, ...]


def look(name: str, data: Path) -> list[Files]:
    """What is there of the files of each part of a benchmark; where a part's files have two sets of names, of the set
    of which more are there.

    Raises:
        ArgumentError: another benchmark.
    """
    found = []
    for part, sets in _parts(name).items():
        looked = [_look(part, names, data) for names in sets]
        found.append(max(looked, key=lambda files: len(files.there)))
    return found


def complete(name: str, data: Path) -> list[Files]:
    """The parts whose files are there.

    Raises:
        InputFileError: there is none, or a part has only some of its files; all that is missing is named.
    """
    found = look(name, data)
    whole = [files for files in found if not files.missing]
    begun = [files for files in found if files.there and files.missing]
    if begun or not whole:
        lacking = ", ".join(file for files in begun or found for file in files.missing)
        raise InputFileError(
            f"{data}: expected the files of {name}, there is no {lacking}. They come from {ORIGINS[name]}; "
            "benchmarks/data/fetch.py fetches what is public."
        )
    return whole


def recipe_of(name: str, files: Files, model: str, data: Path) -> FineTuning:
    """The paper's recipe of a part."""
    train, dev = str(files.paths[0]), str(files.paths[1])
    if name == "squad":
        return FineTuning(task="qa", train=train, dev=dev, model=model, **_SQUAD[files.part])
    if name == "swag":
        given = {"columns": _SWAG, "batch": 16, "learning_rate": 2e-5}
        return FineTuning(task="choice", train=train, dev=dev, model=model, **given)
    if name == "ner":  # the paper tells no numbers
        return FineTuning(task="tokens", train=train, dev=dev, model=model)
    # the rate of the example in BERT's repository; the paper takes the best of RATES
    return FineTuning(task=files.part, train=str(data), model=model, learning_rate=2e-5)


def told(recipe: FineTuning, rates: Sequence[float]) -> str:
    """A recipe in a line. rates: all that are tried."""
    said = " or ".join(f"{rate:g}" for rate in rates)
    return (
        f"{recipe.task}, {recipe.epochs} epochs, batches of {recipe.batch}, learning rate {said}, warm-up "
        f"{recipe.warmup:g}, weight decay {recipe.weight_decay:g}, seed {recipe.seed}"
    )


def rates_of(name: str, recipe: FineTuning, sweep: bool) -> tuple[float, ...]:
    """The learning rates to try. Raises ArgumentError where the paper tried none."""
    if not sweep:
        return (recipe.learning_rate,)
    if name not in RATES:
        raise ArgumentError(
            "--sweep", f"with {', '.join(RATES)}", name, "The paper gives one rate."
        )
    return RATES[name]


def _parts(name: str) -> dict[str, list[tuple[str, ...]]]:
    """Of each part, sets of the names of its files."""
    if name == "squad":
        return {part: [(f"train-{part}.json", f"dev-{part}.json")] for part in _SQUAD}
    if name == "swag":
        return {"swag": [("train.csv", "val.csv")]}
    if name == "ner":
        return {
            "ner": [("eng.train", "eng.testa", "eng.testb"), ("train.txt", "valid.txt", "test.txt")]
        }
    if name in ("glue", "mnli"):
        return {task: [_labelled(task)] for task in (TASKS if name == "glue" else ("mnli",))}
    raise ArgumentError("NAME", "squad, glue, mnli, swag or ner", repr(name))


def _labelled(task: str) -> tuple[str, ...]:
    """The files with labels of a task of GLUE."""
    found = TASKS[task]
    return tuple(
        f"{found.folder}/{file}"
        for part, file in found.splits.items()
        if part not in found.submission
    )


def _look(part: str, names: Sequence[str], data: Path) -> Files:
    there = tuple(name for name in names if (data / name).is_file())
    missing = tuple(name for name in names if name not in there)
    return Files(part, tuple(data / name for name in names), there, missing)
