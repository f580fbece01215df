"""What a fine-tuned model leaves to be read: figures, predictions, what was taken for what, and a card."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .._files import atomic_write, write_json
from .._table import table
from ..checkpoint.hub import require
from ..errors import UnsupportedError
from . import metrics
from .intervals import wilson
from .kinds import Examples, Kind
from .kinds.choice import Choice
from .writing import write_predictions

RESULTS, PREDICTIONS, CONFUSION, CARD = (
    "results.json",
    "predictions.csv",
    "confusion.svg",
    "README.md",
)
_SHOWN = 30  # labels at most of a picture


def write_reports(
    kind: Kind, settings: Any, train: Examples, dev: Examples, found: Any, folder: Path
) -> None:
    """All of them: the card into the model's folder, the others beside it.

    Args:
        kind: as tuned on dev. settings: the `FineTuning`. found: of dev, from `kind.gather`.
    """
    run = folder.parent
    results = {
        "task": settings.task,
        "examples": {"train": len(train.inputs), "dev": len(dev.inputs)},
        "scores": kind.scores(dev.gold, found),
        **_more(kind, dev, found),
    }
    write_json(run / RESULTS, results)
    write_predictions(run / PREDICTIONS, dev.names, kind.answers(dev.inputs, found))
    if kind.problem == "single_label_classification":
        draw_confusion(run / CONFUSION, kind, dev, found)
    with atomic_write(folder / CARD, "w") as file:
        file.write(card(kind, settings, results))


def _more(kind: Kind, dev: Examples, found: Any) -> dict[str, Any]:
    """The interval of an accuracy, and how well probabilities say how often a model is right."""
    more: dict[str, Any] = {}
    single = kind.problem == "single_label_classification" or isinstance(kind, Choice)
    if single:
        right = found.argmax(1) == dev.gold
        more["accuracy_interval"] = list(wilson(int(right.sum()), len(right)))
        errors = {}
        for name, temperature in (("before", 1.0), ("after", kind.form.temperature)):
            sure = metrics.probabilities(found, temperature).max(1)
            errors[name] = metrics.expected_calibration_error(sure, right)
        more["calibration"] = {"temperature": kind.form.temperature, "error": errors}
    if kind.form.nulls:
        more["null_threshold"] = kind.form.null_threshold
    return more


def draw_confusion(path: Path, kind: Kind, dev: Examples, found: np.ndarray) -> None:
    """What was taken for what, as a picture; none without matplotlib, or of very many labels."""
    try:
        require("matplotlib", "Pictures")
    except UnsupportedError:  # a run does not fail for want of a picture
        return
    labels = kind.labels
    if len(labels) > _SHOWN:
        return
    from matplotlib.figure import Figure

    counts = metrics.confusion_matrix(dev.gold, found.argmax(1), len(labels))
    size = 2.5 + 0.45 * len(labels)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        dark = count > counts[row].sum() / 2
        axes.text(column, row, count, ha="center", va="center", color="w" if dark else "k", size=8)
    axes.set_xticks(range(len(labels)), labels, rotation=90, size=8)
    axes.set_yticks(range(len(labels)), labels, size=8)
    axes.set(xlabel="predicted", ylabel="gold")
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="svg")
    os.replace(temporary, path)


def card(kind: Kind, settings: Any, results: dict[str, Any]) -> str:
    """A model card in Markdown: data, recipe, figures, and how the model is used."""
    count = results["examples"]
    rows = [(name.replace("_", " "), f"{value:.4f}") for name, value in results["scores"].items()]
    recipe = [
        f"{settings.epochs} epochs of batches of {settings.batch}, learning rate {settings.learning_rate:g}, "
        f"warm-up {settings.warmup:g}, {settings.optimizer}, weight decay {settings.weight_decay:g}, "
        f"seed {settings.seed}",
        f"sequences of up to {kind.form.max_length} tokens; longer ones: {kind.form.long}",
    ]
    if settings.freeze is not None:
        recipe.append(f"frozen: {settings.freeze}")
    if settings.weights:
        recipe.append(f"class weights: {settings.weights}")
    held_out = "the task's own" if kind.form.glue else f"{settings.share:g} of these, held out"
    dev = Path(settings.dev).name if settings.dev else held_out
    labels = f"\n- labels: {', '.join(kind.form.labels)}" if kind.form.labels else ""
    lines = "\n".join(f"- {line}" for line in recipe)
    more = {
        k: v
        for k, v in results.items()
        if k in ("accuracy_interval", "calibration", "null_threshold")
    }
    said = "".join(f"\n- {name.replace('_', ' ')}: {value}" for name, value in more.items())
    data = f"evaluated on {count['dev']:,} examples: {dev}"
    return f"""# {settings.task}: {Path(settings.model).name}, fine-tuned

Made with bertfast {__version__}.

## Data
- trained on {count["train"]:,} examples of {Path(settings.train).name}
- {data}{labels}

## Recipe
{lines}

```sh
{command(settings)}
```

## Figures
The checkpoint with the best {next(iter(results["scores"])).replace("_", " ")} of all epochs; what is tuned
(temperature, threshold) was tuned on the same examples.

```
{table(rows, right=[1])}
```
{said}

## Use
```python
import bertfast
model = bertfast.load("path of this folder")
```
"""


def command(settings: Any) -> str:
    """The line that makes the run, files by their names alone."""
    words = ["bertfast finetune", settings.task, Path(settings.train).name]
    words += ["--model", Path(settings.model).name, "-o", "run"]
    if settings.dev:
        words += ["--dev", Path(settings.dev).name]
    for owner, names in ((settings, _OPTIONS), (settings.columns, _COLUMNS)):
        default = {f.name: f.default for f in dataclasses.fields(owner)}
        for name in names:
            value = getattr(owner, name)
            if value == default[name]:
                continue
            words.append(f"--{name.replace('_', '-')}")
            if value is not True:
                words.append(",".join(value) if isinstance(value, tuple) else f"{value}")
    if settings.columns.kind:
        words += ["--input-format", settings.columns.kind]
    return shlex.join(words).replace("'bertfast finetune'", "bertfast finetune")


_OPTIONS = (
    *(
        "share",
        "group",
        "several",
        "weights",
        "epochs",
        "batch",
        "learning_rate",
        "warmup",
        "length",
    ),
    *("long", "stride", "language", "freeze", "patience", "dtype", "seed"),
)
_COLUMNS = (
    *("text", "text_pair", "label", "choices", "prefix", "word", "tag", "header"),
    "mismatched",
)
