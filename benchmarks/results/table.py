"""The figures of docs/finetuning.md, as a table of Markdown made from what `benchmarks.results` wrote."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scipy.stats import t

from bertfast.tasks.intervals import wilson

METRICS = ("accuracy", "pearson", "spearman", "entity_f1", "strict_entity_f1", "f1", "exact_match")
# what besides entities is told of words is mostly that they are none
_HIDDEN = {"tokens": ("accuracy",)}
_COLUMNS = (
    "set", "task", "trained on, held out", "metric", "last epoch", "95 %", "best epoch", "transformers",
    "step, theirs / ours",
)  # fmt: skip


def table(folder: Path, names: Iterable[str]) -> str:
    """A row for each metric of each set that was run (none: ""): means over the seeds, ± the standard deviation.

    95 %: of the last epoch's mean; of accuracies and exact matches Wilson's and of correlations Fisher's for so many
    examples, of F1 Student's over the seeds. transformers: its model's last epoch, with the first seed.
    """
    file = folder / "finetuning-beside.json"
    theirs = json.loads(file.read_text()) if file.exists() else {}
    rows: list[str] = []
    for name in names:
        if (folder / f"{name}.json").exists():
            rows += _rows(folder, name, theirs.get(name))
    header = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    return "\n".join(header + rows) if rows else ""


def _rows(folder: Path, name: str, theirs: dict[str, Any] | None) -> Iterable[str]:
    found = json.loads((folder / f"{name}.json").read_text())
    runs = sorted((folder / name).glob("*-seed*"))
    counts = json.loads((runs[0] / "results.json").read_text())["examples"]
    task = found["recipe"]["task"]
    start = (name, task, f"{counts['train']:,}, {counts['dev']:,}")
    for metric in METRICS:
        if metric not in found["last"][0] or metric in _HIDDEN.get(task, ()):
            continue
        last, best = ([run[metric] for run in found[epoch]] for epoch in ("last", "best"))
        cells = [_mean(last), _interval(metric, last, counts["dev"]), _mean(best)]
        cells.append(f"{theirs['last'][metric]:.4f}" if theirs else "")
        cells.append(f"{theirs['ratio']:.2f}" if theirs and start[0] else "")
        yield "| " + " | ".join((*start, metric.replace("_", " "), *cells)) + " |"
        start = ("", "", "")


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _interval(metric: str, values: list[float], count: int) -> str:
    mean = statistics.fmean(values)
    if metric in ("accuracy", "exact_match"):
        low, high = wilson(round(mean * count), count)
    elif metric in ("pearson", "spearman"):
        off = 1.96 / math.sqrt(count - 3)
        low, high = (math.tanh(math.atanh(mean) + sign * off) for sign in (-1, 1))
    elif len(values) > 1:
        off = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        low, high = mean - off, mean + off
    else:
        return ""
    return f"{low:.3f} to {high:.3f}"
