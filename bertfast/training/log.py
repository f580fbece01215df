"""What a run tells: a line on the terminal, a line of JSON, TensorBoard's events, and curves as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.hub import require
from ..errors import UnsupportedError
from .loop import Done

FILE = "log.jsonl"
CURVES = "curves.svg"
_SCORES = ("accuracy", "f1", "exact_match", "matthews", "pearson", "spearman")  # ends of names


class Log:
    """Of one run; the first process alone has one.

    A run that goes on writes after what is there, without the lines of steps that are done again.

    Args:
        folder: of the run. step: done so far.
        peak: gives the FLOP/s that all processes could do now, or None. What it gave most counts: on a shared machine
            it is less at times.
        say: takes a line for the terminal.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        peak: Callable[[], float | None],
        say: Callable[[str], None],
    ):
        self._path, self._peak, self._say = folder / FILE, peak, say
        self._best = 0.0
        _cut(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        self._tokens = self._flops = self._seconds = 0.0
        self._board = _board(folder)

    def count(self, done: Done) -> None:
        """Every step."""
        self._tokens += done.tokens
        self._flops += done.flops
        self._seconds += done.seconds

    def step(self, done: Done, steps: str) -> None:
        """A step that is logged, with the speed since the one before."""
        seconds = max(self._seconds, 1e-9)
        speed = {
            "tokens_per_second": self._tokens / seconds,
            "tflops": self._flops / seconds / 1e12,
        }
        self._best = max(self._best, self._peak() or 0.0)
        if self._best:
            speed["utilisation"] = self._flops / seconds / self._best
        rest = {"learning_rate": done.rate, "gradient_norm": done.norm, "seconds": self._seconds}
        self._tokens = self._flops = self._seconds = 0.0
        self._write({"step": done.step, **done.metrics, **speed, **rest})
        shown = _shown(done.metrics)
        rate = f"{speed['tokens_per_second']:,.0f} tok/s"
        used = f" ({speed['utilisation']:.0%} of peak)" if self._best else ""
        shown += [f"lr {done.rate:.2e}", f"{rate}, {speed['tflops']:.3f} TFLOP/s{used}"]
        self._say(f"step {done.step}{steps}: {', '.join(shown)}")

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Held-out examples after a step."""
        self._write({"step": step, **{f"held_out_{k}": v for k, v in metrics.items()}})
        self._say(f"step {step}, held out: {', '.join(_shown(metrics))}")

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def flush(self) -> None:
        """Before a checkpoint, which shall not know more than the log."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if self._board is not None:
            step = values["step"]
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)


def _shown(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items()]


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def draw_curves(folder: Path) -> Path | None:
    """Losses and scores over steps as a picture; None without the package matplotlib, or without lines."""
    lines = read(folder)
    try:
        require("matplotlib", "Curves")
    except UnsupportedError:  # a run does not fail for want of a picture
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name in sorted({key for line in lines for key in line}):
        for kinds, axes in (("loss", losses), (_SCORES, scores)):
            if name.endswith(kinds):
                style = "o--" if name.startswith("held_out_") else "-"
                points = [(line["step"], line[name]) for line in lines if name in line]
                axes.plot(
                    *zip(*points, strict=True), style, ms=3, lw=1, label=name.replace("_", " ")
                )
    for axes, title in ((losses, "loss, nats"), (scores, "scores")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize=7, frameon=False)
        axes.grid(alpha=0.25)
    temporary = folder / f".{CURVES}.tmp"
    figure.savefig(temporary, format="svg")
    os.replace(temporary, folder / CURVES)
    return folder / CURVES


def _cut(path: Path, step: int) -> None:
    """Leave the lines up to a step."""
    if not path.is_file():
        return
    kept = [json.dumps(line) + "\n" for line in read(path.parent) if line["step"] <= step]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _board(folder: Path) -> Any | None:
    """A writer for TensorBoard, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
