"""The figures of docs/finetuning.md, as a table of Markdown made from what `benchmarks.results` wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METRICS = ("accuracy", "pearson", "spearman", "entity_f1", "strict_entity_f1", "f1", "exact_match")
# what besides entities is told of words is mostly that they are none
_HIDDEN = {"tokens": ("accuracy",)}
HEADER = "| set | task | trained on, held out | metric | last epoch | best epoch | transformers | step, theirs / ours |"


def table(folder: Path, names: Iterable[str]) -> str:
    """A row for each metric of each set that was run: means over the seeds, ± the standard deviation.

    transformers: its model's last epoch with the first seed.
    """
    file = folder / "finetuning-beside.json"
    theirs = json.loads(file.read_text()) if file.exists() else {}
    rows = [HEADER, "|---" * HEADER.count(" |") + "|"]
    for name in names:
        if (folder / f"{name}.json").exists():
            rows += _rows(folder, name, theirs.get(name))
    return "\n".join(rows)


def _rows(folder: Path, name: str, theirs: dict[str, Any] | None) -> Iterable[str]:
    found = json.loads((folder / f"{name}.json").read_text())
    runs = sorted((folder / name).glob("*-seed*"))
    counts = json.loads((runs[0] / "results.json").read_text())["examples"]
    task = found["recipe"]["task"]
    start = (name, task, f"{counts['train']:,}, {counts['dev']:,}")
    for metric in METRICS:
        if metric not in found["last"][0] or metric in _HIDDEN.get(task, ()):
            continue
        cells = [_mean(found[epoch], metric) for epoch in ("last", "best")]
        cells.append(f"{theirs['last'][metric]:.4f}" if theirs else "")
        cells.append(f"{theirs['ratio']:.2f}" if theirs and start[0] else "")
        yield "| " + " | ".join((*start, metric.replace("_", " "), *cells)) + " |"
        start = ("", "", "")


def _mean(runs: list[dict[str, float]], metric: str) -> str:
    values = [run[metric] for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
