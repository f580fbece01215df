"""The curves of docs/pretraining.md, made from what `benchmarks.results` wrote."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from bertfast.training.log import read

RUNS = {
    "minilm": "MiniLM-L6, goes on",
    "scratch": "English, from nothing",
    "chinese": "Chinese, from nothing",
}
WORDS, PAIRS = "held_out_masked_lm_accuracy", "held_out_next_sentence_accuracy"


def draw_curves(folder: Path) -> Path | None:
    """folder/curves.svg: of each run held-out accuracies, and losses beside transformers'."""
    logs = {name: read(folder / name) for name in RUNS if (folder / name / "log.jsonl").is_file()}
    if not logs:
        return None
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    words, pairs, beside = figure.subplots(1, 3)
    for name, lines in logs.items():
        for axes, field in ((words, WORDS), (pairs, PAIRS)):
            points = [(line["step"], line[field]) for line in lines if field in line]
            if points:
                color = f"C{list(RUNS).index(name)}"
                axes.plot(
                    *zip(*points, strict=True), "o-", ms=2, lw=1, color=color, label=RUNS[name]
                )
    if (folder / "beside.json").is_file():
        found = json.loads((folder / "beside.json").read_text())
        for name, style in (("bertfast", "o-"), ("transformers", "x--")):
            points = [(line["step"], line["loss"]) for line in found[name]]
            beside.plot(*zip(*points, strict=True), style, ms=4, lw=1, label=name)
    titles = (
        "masked words, held out",
        "next sentences, held out",
        "MiniLM without dropout, loss",
    )
    for axes, title in zip((words, pairs, beside), titles, strict=True):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.25)
        if axes.lines:
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(folder / "curves.svg", format="svg")
    return folder / "curves.svg"
