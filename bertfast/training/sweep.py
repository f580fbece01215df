"""Several runs of fine-tuning: a grid of recipes, each with some seeds, as a table."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._files import read_json, write_json
from .._table import table
from ..errors import CheckpointError, RunError
from ..tasks.report import RESULTS
from .finetuning import FineTuning, finetune
from .run import FINAL, check_same, logger

FILE = "sweep.json"
_PLANNED = ("phases",)  # follows from the data
# Devlin et al., 2019, appendix A.3
GRIDS = {"classic": {"batch": (16, 32), "learning_rate": (5e-5, 3e-5, 2e-5), "epochs": (3, 4)}}


def sweep(
    recipe: FineTuning,
    folder: str | Path,
    grid: str | None = "classic",
    seeds: int = 1,
    *,
    say: Callable[[str], None] = logger.info,
    **options: Any,
) -> str:
    """Fine-tune with every recipe of a grid and some seeds; those that are done already are not run again.

    Args:
        recipe: what the grid does not say. folder: of the runs, each in a folder of its own, and of sweep.json.
        grid: a name of `GRIDS`; None: the recipe alone. seeds: from the recipe's on.
        options: of `finetune`.

    Raises:
        RunError: a run that is done had another recipe, another file or model; or its scores are gone.

    Returns: a table: of each recipe the mean of the scores, and their spread (standard deviation) over the seeds.
    """
    folder, found = Path(folder), []
    names = tuple(GRIDS[grid]) if grid else ()
    for values in itertools.product(*GRIDS[grid].values()) if grid else [()]:
        one = replace(recipe, **dict(zip(names, values, strict=True)))
        scores = []
        for seed in range(recipe.seed, recipe.seed + seeds):
            run = folder / _name(one, seed)
            say(f"{run.name}:")
            scores.append(_scores(replace(one, seed=seed), run, say, options))
        found.append({**dict(zip(names, values, strict=True)), "scores": scores})
    write_json(folder / FILE, {"task": recipe.task, "seed": recipe.seed, "runs": found})
    return report(found)


def report(found: list[dict[str, Any]]) -> str:
    """The best first."""
    first, *rest = metrics = list(found[0]["scores"][0])

    def mean(run: dict[str, Any], name: str) -> float:
        return statistics.fmean(scores[name] for scores in run["scores"])

    names = [name for name in found[0] if name != "scores"]
    rows = [(*(name.replace("_", " ") for name in names), *(m.replace("_", " ") for m in metrics))]
    for run in sorted(found, key=lambda run: -mean(run, first)):
        cells = [f"{run[name]:g}" for name in names]
        for name in (first, *rest):
            values = [scores[name] for scores in run["scores"]]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{mean(run, name):.4f}{spread}")
        rows.append(tuple(cells))
    return table(rows, right=range(len(rows[0])))


def _name(recipe: FineTuning, seed: int) -> str:
    return f"batch{recipe.batch}-lr{recipe.learning_rate:g}-epochs{recipe.epochs}-seed{seed}"


def _scores(recipe: FineTuning, run: Path, say: Any, options: dict[str, Any]) -> dict[str, float]:
    if (run / FINAL).is_dir():
        check_same(run, recipe.as_dict(), _PLANNED)
    else:
        finetune(recipe, run, say=say, **options)
    results = run / RESULTS
    if not results.is_file():
        raise RunError(f"{results}: expected the scores of the run, there are none. Remove {run}.")
    return read_json(results, CheckpointError)["scores"]
