"""BERT's published figures, measured with a model of one's own: recipe, official metric, and both side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._files import read_json, write_json
from ..checkpoint.hub import resolve
from ..errors import ArgumentError, CheckpointError, RunError
from ..tasks import glue, published
from ..tasks.predictor import Predictor, load
from ..tasks.published import Board, Figure, Row
from ..tasks.report import RESULTS
from .finetuning import FineTuning, Job, finetune
from .paper import ORIGINS, Files, complete, look, rates_of, recipe_of, told
from .run import FINAL, logger

FILE, PLAN, SUBMISSION, _DONE = "reproduce.json", "plan.json", "submission", "figures.json"
MEASURED = ("nsp", "params")  # nothing is trained
_EXAMPLES = 2000  # pairs of sentences
_NAMES = {"exact_match": "exact match", "f1": "F1", "entity_f1": "F1"}  # of published boards
Say = Callable[[str], None]


def reproduce(
    name: str,
    model: str,
    data: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
    *,
    sweep: bool = False,
    device: Any = None,
    say: Say = logger.info,
) -> list[Board]:
    """Measure what BERT's authors published. A run that was stopped goes on; parts that are done are not done again.

    Args:
        name: one of `published.NAMES`. model: a checkpoint.
        data: the folder of the files (see `paper.look`); of nsp a store that `bertfast prepare` made; of params None.
        run: the folder of the run, which gets reproduce.json; None where nothing is trained.
        sweep: try the paper's learning rates and take the best on dev. device: as in `finetune`.

    Returns: the figures beside the published ones.

    Raises:
        ArgumentError: an argument is wrong, or lacking.
        InputFileError: files are missing, all of which are named, or wrong.
        RunError: the folder has a run with other arguments.
        Stopped, CheckpointError, StoreError, OSError: as in `finetune` and `Store.open`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        advice = "Run bertfast finetune with torchrun."
        raise ArgumentError("WORLD_SIZE", "1, as reproduce is one process", "more", advice)
    if name in MEASURED:
        boards, recipes = _measured(name, model, data, device), {}
    else:
        if run is None:
            raise ArgumentError("--output", "the folder of the run", "none")
        if data is None:
            raise ArgumentError("--data-dir", "the folder of the files", "none")
        boards, recipes = _trained(name, model, Path(data), Path(run), sweep, device, say)
    if run is not None:
        Path(run).mkdir(parents=True, exist_ok=True)
        about = {"name": name, "model": model, "recipes": recipes}
        write_json(Path(run, FILE), about | {"boards": [board.as_dict() for board in boards]})
    return boards


def describe(
    name: str,
    model: str,
    data: str | os.PathLike[str] | None = None,
    *,
    sweep: bool = False,
    say: Say = logger.info,
) -> str:
    """What `reproduce` would do: files found and missing, recipes, steps and the published figures. Nothing is run;
    steps are counted by reading the files that are there.

    Raises: as `reproduce`, but for files that are missing.
    """
    if name == "nsp":
        return f"a store of bertfast prepare, {_EXAMPLES} pairs\n\n{published.NSP.as_text()}"
    if name == "params":
        return f"the parameters of {model}\n\n{published.PARAMETERS.as_text()}"
    if data is None:
        raise ArgumentError("--data-dir", "the folder of the files", "none")
    lines = [f"files of {name}, from {ORIGINS[name]}"]
    for files in look(name, Path(data)):
        recipe = recipe_of(name, files, model, Path(data))
        rates = rates_of(name, recipe, sweep)
        steps = "steps are not known without the files"
        if not files.missing:
            count = Job(recipe, say).settings.steps
            steps = f"{count:,} steps" + (f", {len(rates)} times" if len(rates) > 1 else "")
        lines += [
            f"{files.part}: found {', '.join(files.there) or 'nothing'}; missing "
            f"{', '.join(files.missing) or 'nothing'}",
            f"  {told(recipe, rates)}",
            f"  {steps}",
        ]
    boards = [board.as_text() for board in _boards(name, None)]
    return "\n\n".join(["\n".join(lines), *boards])


def _trained(
    name: str, model: str, data: Path, run: Path, sweep: bool, device: Any, say: Say
) -> tuple[list[Board], dict[str, Any]]:
    parts = complete(name, data)
    left = [files.part for files in look(name, data) if files.missing]
    if left:
        say(f"{data}: without {', '.join(left)}, of which no file is there")
    places = {"model": str(resolve(model).absolute()), "data": str(data.absolute())}
    _check_plan(run, {"name": name, **places, "sweep": sweep})
    found, recipes = {}, {}
    for files in parts:
        recipe = recipe_of(name, files, model, data)
        rates = rates_of(name, recipe, sweep)
        done = run / files.part / _DONE
        if done.is_file():
            say(f"{files.part}: done")
        else:
            say(f"{files.part}: {told(recipe, rates)}")
            write_json(done, _part(name, files, recipe, rates, run, device, say))
        found[files.part] = read_json(done, CheckpointError)
        best = replace(recipe, learning_rate=found[files.part]["learning_rate"])
        recipes[files.part] = best.as_dict()
    ours = {part: values["figures"] for part, values in found.items()}
    return _boards(name, _rows(name, Path(model).name, ours)), recipes


def _check_plan(run: Path, plan: Mapping[str, Any]) -> None:
    """A folder is one plan's."""
    path = run / PLAN
    if path.is_file():
        before = read_json(path, CheckpointError)
        for name, value in plan.items():
            if before.get(name) != value:
                raise RunError(
                    f"{run}: begun with another {name}, {before.get(name)!r}, now it is {value!r}. Give the run a new "
                    "folder."
                )
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(plan))


def _part(
    name: str,
    files: Files,
    recipe: FineTuning,
    rates: Sequence[float],
    run: Path,
    device: Any,
    say: Say,
) -> dict[str, Any]:
    """Train a part, and measure it: the learning rate, and figures from 0 to 1 by split and metric."""
    folders = {}
    for rate in rates:
        folder = folders[rate] = run / files.part / f"lr{rate:g}"
        if not (folder / FINAL).is_dir():
            finetune(replace(recipe, learning_rate=rate), folder, device=device, say=say)
    scores = {
        rate: read_json(folder / RESULTS, CheckpointError)["scores"]
        for rate, folder in folders.items()
    }
    best = max(scores, key=lambda rate: next(iter(scores[rate].values())))
    figures = {"dev": scores[best]}
    predictor = load(folders[best] / FINAL, device)
    if name == "ner":
        figures["test"] = _score(predictor, str(files.paths[2]), "test")
    elif predictor.form.glue:
        if files.part == "mnli":
            mismatched = _score(predictor, recipe.train, "dev_mismatched")
            figures["dev"] = {
                "matched": scores[best]["accuracy"],
                "mismatched": mismatched["accuracy"],
            }
        _submit(predictor, recipe.train, run / SUBMISSION, say)
    return {"learning_rate": best, "figures": figures, "rates": [[r, s] for r, s in scores.items()]}


def _score(predictor: Predictor, path: str, part: str) -> dict[str, float]:
    """The metrics of a file, or of a split of GLUE, that has labels."""
    kind, form = predictor.kind, predictor.form
    examples = kind.examples(form, kind.open(form, path, part), True)
    return kind.scores(examples.gold, predictor.found(examples.inputs))


def _submit(predictor: Predictor, data: str, folder: Path, say: Say) -> None:
    """The files of predictions for GLUE's server, of the test files that are there."""
    kind, form = predictor.kind, predictor.form
    task = glue.TASKS[form.glue]
    folder.mkdir(parents=True, exist_ok=True)
    for part in task.submission:
        if not Path(data, task.folder, task.splits[part]).is_file():
            say(f"{task.folder}: no {task.splits[part]}, so no {task.submission[part]}")
            continue
        examples = kind.examples(form, kind.open(form, data, part), False)
        found = predictor.found(examples.inputs)
        told = found[:, 0] if task.labels is None else found.argmax(1)
        say(str(glue.write_submission(folder, form.glue, part, examples.names, told)))


def _rows(name: str, model: str, ours: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows of ours by board, in percent. ours: by part, split and metric."""
    system = f"ours, {model}"
    if name in ("glue", "mnli"):
        dev = {part: figures["dev"] for part, figures in ours.items()}
        named = {f"{part} {m}": v for part, values in dev.items() for m, v in values.items()}
        if not glue.TASKS.keys() - dev.keys() - {"wnli"}:
            named |= {
                published.AVERAGE: glue.paper_average(dev),
                published.SCORE: glue.average(dev),
            }
        return {name: [Row(system, "dev", _percent(named), "")]}
    return {
        part: [Row(system, split, _percent(values), "") for split, values in figures.items()]
        for part, figures in ours.items()
    }


def _percent(figures: Mapping[str, float]) -> dict[str, Figure]:
    return {_NAMES.get(name, name): 100 * value for name, value in figures.items()}


def _boards(name: str, ours: Mapping[str, Sequence[Row]] | None) -> list[Board]:
    """The published figures with ours, of the parts that were measured; with None all of them, alone."""
    single = {"glue": published.GLUE, "mnli": published.MNLI}
    single |= {"swag": published.SWAG, "ner": published.NER}
    boards = published.SQUAD if name == "squad" else {name: single[name]}
    if ours is None:
        return list(boards.values())
    return [board.beside(ours[part]) for part, board in boards.items() if part in ours]


def _measured(name: str, model: str, data: Any, device: Any) -> list[Board]:
    folder = resolve(model)
    return _parameters(folder) if name == "params" else _next_sentences(folder, data, device)


def _parameters(folder: Path) -> list[Board]:
    from ..tasks.parameters import count, explanation

    found = count(folder)
    parts = [
        Row(
            part + (" (not in this checkpoint)" if part in found.missing else ""),
            "",
            {"parameters": n},
            "",
        )
        for part, n in found.parts.items()
    ]
    parts += [
        Row("all without heads", "", {"parameters": found.encoder}, ""),
        Row("all", "", {"parameters": found.total}, ""),
    ]
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    shape = [found.config[size] for size in sizes]
    ours = published.sized(f"ours, {folder.name}, without heads", (*shape, found.encoder), "")
    size = published.PARAMETERS.beside([ours])
    return [
        Board(f"Parameters of {folder.name}", ("parameters",), tuple(parts)),
        size._replace(notes=explanation()),
    ]


def _next_sentences(folder: Path, data: Any, device: Any) -> list[Board]:
    from ..data.store import Store
    from ..models.pretraining import load_pretrained
    from ..tasks.evaluation import evaluate

    if data is None:
        raise ArgumentError("--data-dir", "a store that bertfast prepare made", "none")
    store = Store.open(data)
    store.check_vocabulary(folder)
    model = load_pretrained(folder).to(device)
    length = min(512, model.config.max_position_embeddings)
    found = evaluate(model, store, length=length, examples=_EXAMPLES)
    if found.next_sentence is None:
        raise CheckpointError(f"{folder}: expected a model with a head for next sentences.")
    rows = []
    for kind, shares in found.next_sentence.items():
        for who, share in shares.items():
            system = f"ours, {folder.name}" if who == "model" else who
            figures = {
                "accuracy": 100 * share.value,
                "95 %": (round(100 * share.low, 1), round(100 * share.high, 1)),
            }
            rows.append(Row(f"{system}, {kind} pairs", "", figures, ""))
    said = f"{found.examples:,} pairs of up to {length} tokens, of {found.documents:,} documents that were held out."
    board = published.NSP.beside(rows)
    return [board._replace(metrics=("accuracy", "95 %"), notes=(said, *board.notes))]
