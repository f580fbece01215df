"""Fine-tuning on real data: means over seeds, and transformers' model with the same recipe, data and order."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from bertfast.tasks.form import Columns
from bertfast.training import log
from bertfast.training.finetuning import FineTuning, Job
from bertfast.training.loop import Loop, Steps
from bertfast.training.optimizers import make_optimizer
from bertfast.training.processes import Processes
from bertfast.training.run import FINAL, train
from bertfast.training.sweep import sweep

from .beside import of_like_lengths, padded
from .labelled import SHARED, make

SEEDS = 3
RACE = 8  # steps of each, in turn
_SICK = Columns(text="sentence_A", text_pair="sentence_B", label="entailment_judgment")
_RELATED = replace(_SICK, label="relatedness_score")
_SICK_FILES = {"train": SHARED / "sick-train.tsv", "dev": SHARED / "sick-trial.tsv"}
_WNUT = {"train": SHARED / "wnut17-train.conll", "dev": SHARED / "wnut17-dev.conll"}


def own(name: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"train": make(folder / "labelled", name)}


RECIPES: dict[
    str, tuple[str, Callable[[Path], dict[str, Any]] | dict[str, Any], dict[str, Any]]
] = {
    "sms": ("single", own("sms.jsonl"), {}),
    "movie": ("single", own("movie.jsonl"), {}),
    "trec": ("single", own("trec.jsonl"), {"epochs": 4}),
    "sick": ("pair", _SICK_FILES, {"columns": _SICK, "epochs": 4}),
    "related": ("regression", _SICK_FILES, {"columns": _RELATED, "epochs": 4}),
    "wnut": ("tokens", _WNUT, {"epochs": 4}),
    "tweets": ("tokens", own("tweets.conll"), {"epochs": 4}),
    "dialogue": ("choice", own("dialogue.jsonl"), {"batch": 16, "length": 64}),
    "policy": (
        "qa",
        {"train": SHARED / "policyqa-dev.json"},
        {"group": "title", "share": 0.2, "epochs": 3, "length": 256},
    ),
    "reviews": ("single", own("reviews.jsonl"), {"epochs": 3, "learning_rate": 2e-4}),
    "daily": ("tokens", own("daily.jsonl"), {"epochs": 2, "learning_rate": 2e-4}),
}
ONE_SEED = ("policy",)
CHINESE = ("reviews", "daily")
BESIDE = ("sms", "sick", "wnut")


def recipe_of(folder: Path, name: str, model: Path) -> FineTuning | None:
    """None where a file is not here."""
    task, files, options = RECIPES[name]
    found = files(folder) if callable(files) else files
    if any(not path.exists() for path in found.values()):
        print(f"{name}: left out, {', '.join(map(str, found.values()))} not here")
        return None
    named = {key: str(path) for key, path in found.items()}
    return FineTuning(task=task, model=str(model), log_every=20, **named, **options)


def finetuned(folder: Path, name: str, model: Path) -> None:
    """A table over seeds; FOLDER/<name>.json has the scores of the best and of the last epoch."""
    recipe = recipe_of(folder, name, model)
    if recipe is None:
        return
    runs = folder / name
    seeds = 1 if name in ONE_SEED else SEEDS
    print(sweep(recipe, runs, None, seeds, say=print), flush=True)
    found = json.loads((runs / "sweep.json").read_text())["runs"][0]["scores"]
    last = [_last(run) for run in sorted(runs.glob("*-seed*"))]
    results = {"recipe": recipe.as_dict(), "best": found, "last": last}
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1))


def _last(run: Path) -> dict[str, float]:
    """Held-out metrics of the last epoch."""
    lines = [line for line in log.read(run) if "held_out_loss" in line]
    return {k.removeprefix("held_out_"): v for k, v in lines[-1].items() if k != "step"}


class Padded(nn.Module):
    """Of a class of transformers with a head: called with packed batches, as the loop calls bertfast's.

    The loss is that of its logits, divided by what the loop gives. `rows` at a time are computed, of like lengths, as
    a whole batch that is padded to its longest text takes three times as long; None: the batch, as its users have it.
    """

    rows: int | None = 8

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, cu_seq_lens_q: Tensor, **given: Any
    ) -> Any:
        lengths = cu_seq_lens_q.diff().tolist()
        inputs = {
            "input_ids": input_ids[0].split(lengths),
            "token_type_ids": token_type_ids[0].split(lengths),
            "attention_mask": torch.ones_like(input_ids[0]).split(lengths),
        }
        logits: list[Any] = [None] * len(lengths)
        for some in of_like_lengths(lengths, self.rows):
            given_rows = {name: padded([part[i] for i in some]) for name, part in inputs.items()}
            output = super().forward(**given_rows)
            for index, found in zip(some, output.logits, strict=True):
                logits[index] = found
        if isinstance(self, transformers.BertForTokenClassification):
            real = [found[:length] for found, length in zip(logits, lengths, strict=True)]
            output.logits = torch.cat(real)[None]
        else:
            output.logits = torch.stack(logits)
        labels = given.get("labels")
        if labels is not None:
            scores, targets = output.logits.flatten(0, -2), labels.flatten()
            loss = F.cross_entropy(scores, targets, reduction="sum")
            output.loss = loss / given["num_items_in_batch"]
        return output


class Theirs(Job):
    """The same job with transformers' class."""

    def make_model(self, folder: Path | None) -> nn.Module:
        ours = super().make_model(folder)
        kind = getattr(transformers, self.kind.head)
        model = type(kind.__name__, (Padded, kind), {})(ours.config)
        model.load_state_dict(ours.state_dict())
        return model


def beside(folder: Path, model: Path) -> None:
    """transformers' model on three tasks, one seed, and step times of both in turn."""
    found = {}
    for name in BESIDE:
        recipe = recipe_of(folder, name, model)
        if recipe is None:
            continue
        run = folder / "transformers" / name
        if not (run / FINAL).exists():
            train(Theirs(recipe, print), run, device="cpu", say=print)
        scores = json.loads((run / "results.json").read_text())["scores"]
        found[name] = {"scores": scores, "last": _last(run), **race(recipe)}
        print(name, json.dumps(found[name]), flush=True)
    (folder / "finetuning-beside.json").write_text(json.dumps(found, indent=1))


def race(recipe: FineTuning) -> dict[str, Any]:
    """Seconds of a step of both, in turn; the first of each is not counted."""
    jobs = {"bertfast": Job(recipe, print), "transformers": Theirs(recipe, print)}
    running = {name: loop_of(job).run() for name, job in jobs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(RACE + 1):
        for name, steps in running.items():
            seconds[name].append(next(steps).seconds)
    pairs = zip(seconds["bertfast"][1:], seconds["transformers"][1:], strict=True)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {"seconds_a_step": medians, "ratio": statistics.median(t / o for o, t in pairs)}


def loop_of(job: Job) -> Loop:
    model = job.make_model(None)
    if isinstance(model, Padded):
        model.rows = None
    steps = Steps(job.settings, job.tasks, model.config)
    return Loop(steps, model, model, make_optimizer(job.settings, model), Processes("cpu"))
