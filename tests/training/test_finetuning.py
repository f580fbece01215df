"""Whole runs of fine-tuning: what they leave, which model stays, how they end and go on, and sweeps."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file

import bertfast
from bertfast.cli import main
from bertfast.errors import RunError
from bertfast.tasks.form import load_form
from bertfast.tasks.kinds import KINDS
from bertfast.training import log, state, sweep
from bertfast.training.finetuning import Job, finetune
from harness import toys
from training.processes import FINETUNED, LOSSES
from training.runs import digest
from training.test_run import drive

pytestmark = pytest.mark.xdist_group("finetuning")
SCORES = {
    "single": ["accuracy", "macro_f1", "matthews"],
    "pair": ["accuracy", "macro_f1", "matthews"],
    "regression": ["pearson", "spearman", "mean_squared_error"],
    "choice": ["accuracy"],
    "tokens": ["entity_f1", "strict_entity_f1", "precision", "recall", "accuracy"],
    "qa": ["f1", "exact_match", "answered_f1", "null_f1"],
}
LABELS = {
    "single": ("bad", "good", "long"),
    "pair": ("no", "yes"),
    "regression": (),
    "choice": ("0", "1", "2"),
    "tokens": ("O", "B-LOC", "B-PER", "I-LOC", "I-PER"),
    "qa": (),
}


def silent(line: str) -> None:
    pass


def test_what_becomes_of_long_texts_is_said(tmp_path, checkpoint):
    texts = ["went to rome by train " * 4, "rome"] * 10
    rows = [{"text": text, "label": str(number % 3)} for number, text in enumerate(texts)]
    train = toys.write_rows(tmp_path / "long.csv", rows)
    recipe = toys.recipe_of("single", train, checkpoint, length=12, dev=str(train))
    for long, expected in (
        ("truncate", "10 of 20 examples are longer than 12 tokens and lose their end"),
        ("slide", "10 of 20 examples are longer than 12 tokens and read in 30 windows"),
    ):
        said: list[str] = []
        Job(replace(recipe, long=long), said.append)
        (line,) = said
        assert line.startswith(expected)


def run_of(task: str, folder: Path, checkpoint: Path, **changes) -> Path:
    """12 steps."""
    train = toys.write_examples(folder, task)
    recipe = toys.recipe_of(task, train, checkpoint, **{**toys.TWELVE, **changes})
    finetune(recipe, folder / "run", say=silent)
    return folder / "run"


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / state.FOLDER).iterdir())


@pytest.mark.parametrize("task", toys.TASKS)
def test_what_a_run_leaves(tuned, task):
    run = tuned[task]
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == task
    assert list(results["scores"]) == SCORES[task]
    dev, train = results["examples"]["dev"], results["examples"]["train"]
    assert (dev, train) == (8, 32)
    with open(run / "predictions.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len({row["example"] for row in rows}) == dev
    assert (run / "confusion.svg").exists() == (task in ("single", "pair"))
    lines = log.read(run)
    score = SCORES[task][0]
    drawn = (run / log.CURVES).read_text()  # matplotlib names what it draws in comments
    assert f"<!-- held out {score.replace('_', ' ')} -->" in drawn
    assert sum(f"held_out_{score}" in line for line in lines) == 2
    form = load_form(run / "model")
    assert (form.task, form.labels) == (task, LABELS[task])
    best = max(line[f"held_out_{score}"] for line in lines if f"held_out_{score}" in line)
    assert abs(results["scores"][score] - best) < 1e-6  # of other batches


@pytest.mark.parametrize("task", toys.TASKS)
def test_the_command_of_the_card(tuned, task, tmp_path, monkeypatch):
    """It makes the same model again."""
    card = (tuned[task] / "model" / "README.md").read_text()
    command = shlex.split(card.split("```sh\n")[1].split("\n```")[0])
    assert command[:2] == ["bertfast", "finetune"]
    if task not in ("pair", "qa"):  # two are enough
        return
    monkeypatch.chdir(tmp_path)
    toys.write_examples(tmp_path, task)
    toys.make_checkpoint(tmp_path / command[command.index("--model") + 1])
    result = CliRunner().invoke(main, command[1:])
    assert result.exit_code == 0, result.output
    assert weights(tmp_path / "run") == weights(tuned[task])


HEADS = {task: kind.head for task, kind in KINDS.items()}


@pytest.mark.parametrize("task", toys.TASKS)
def test_the_model_in_transformers(tuned, task):
    folder = tuned[task] / "model"
    ours = getattr(bertfast, HEADS[task]).from_pretrained(folder).eval()
    theirs = getattr(transformers, HEADS[task]).from_pretrained(folder).eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(["i live in paris", "my home"], padding=True, return_tensors="pt")
    if task == "choice":
        given = {name: value[None] for name, value in given.items()}
    with torch.no_grad():
        want, got = theirs(**given), ours(**given)
    real = given["attention_mask"].bool()
    for name, logits in want.items():
        other = got[name]
        if logits.shape[:2] == real.shape:  # of tokens, as padding has others
            logits, other = logits[real], other[real]
        assert (logits - other).abs().max() < 1e-5 * logits.abs().max(), name
    if task in ("single", "pair", "tokens"):
        assert list(theirs.config.id2label.values()) == list(load_form(folder).labels)


def test_the_best_checkpoint(tmp_path, checkpoint, monkeypatch):
    """Of three epochs the second is the best: it is kept beside the last, and it is the model."""
    scores = iter([0.2, 0.9, 0.4])
    monkeypatch.setattr(Job, "score", lambda self, metrics: [next(scores)])
    run = run_of("single", tmp_path, checkpoint)
    assert checkpoints(run) == ["step-00000008", "step-00000012"]
    best, last = (
        load_file(run / state.FOLDER / name / state.MODEL / "model.safetensors")
        for name in checkpoints(run)
    )
    final = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(final[name], best[name]) for name in best)
    assert not all(torch.equal(final[name], last[name]) for name in last)
    told = [line for line in log.read(run) if "held_out_accuracy" in line][1]
    results = json.loads((run / "results.json").read_text())
    assert results["scores"]["accuracy"] == told["held_out_accuracy"]


def test_of_equal_scores_the_lower_loss(tmp_path, checkpoint):
    train = toys.write_examples(tmp_path, "single")
    job = Job(toys.recipe_of("single", train, checkpoint), silent)
    assert job.score({"loss": 1.0, "accuracy": 0.5}) < job.score({"loss": 0.9, "accuracy": 0.5})
    assert job.score({"loss": 0.1, "accuracy": 0.4}) < job.score({"loss": 0.9, "accuracy": 0.5})


def test_patience(tmp_path, checkpoint, monkeypatch):
    """Two epochs without a better score end the run; it does not go on when it is asked again."""
    monkeypatch.setattr(Job, "score", lambda self, metrics: [-metrics["loss"] * 0])
    for _ in range(2):
        run = run_of("single", tmp_path, checkpoint, epochs=9, patience=2)
        assert checkpoints(run) == ["step-00000004", "step-00000012"]
        assert log.read(run)[-1]["step"] == 12


@pytest.mark.parametrize(
    ("what", "still"), [("embeddings", ()), (1, ("0.",)), ("encoder", ("0.", "1."))]
)
def test_freeze(tmp_path, checkpoint, what, still):
    run = run_of("single", tmp_path, checkpoint, freeze=what, epochs=1)
    before = load_file(checkpoint / "model.safetensors")
    after, changed = load_file(run / "model" / "model.safetensors"), set()
    frozen = ("bert.embeddings.", *(f"bert.encoder.layer.{layer}" for layer in still))
    for name in before.keys() & after.keys():
        if name.startswith(frozen):
            assert torch.equal(before[name], after[name]), name
        elif not torch.equal(before[name], after[name]):
            changed.add(name)
    trained = {name for name in before.keys() & after.keys() if not name.startswith(frozen)}
    # a key's bias changes no softmax
    assert {n for n in trained - changed if not n.endswith("key.bias")} == set()


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("driven"), tmp_path_factory.mktemp("toys")
    toys.make_checkpoint(made / "model")
    return folder, drive("finetuned", made, folder)


@pytest.mark.parametrize("moment", [*FINETUNED, "stopped"])
def test_gone_on_with(driven, moment):
    folder, status = driven
    assert status["undisturbed"] == [0], status["said"]
    first = 0 if moment == "stopped" else signal.SIGKILL
    assert status[moment] == [first, 0], status["said"]
    assert digest(folder / moment) == digest(folder / "undisturbed")
    assert weights(folder / moment) == weights(folder / "undisturbed")
    for name in ("results.json", "predictions.csv"):
        assert (folder / moment / name).read_text() == (folder / "undisturbed" / name).read_text()


def test_two_processes(driven):
    folder, status = driven
    assert status["two"] == [0, 0], status["said"]
    want, got = (
        json.loads((folder / name / LOSSES).read_text()) for name in ("undisturbed", "two")
    )
    assert [step for step, *_ in got] == list(range(1, 13))
    for (_, loss, norm), (_, other, norm_other) in zip(want, got, strict=True):
        assert abs(loss - other) <= 1e-5  # the target
        assert abs(norm - norm_other) <= 1e-5 * norm
    lines = [
        [ln for ln in log.read(folder / name) if "held_out_loss" in ln]
        for name in ("undisturbed", "two")
    ]
    for one, two in zip(*lines, strict=True):
        assert abs(one["held_out_loss"] - two["held_out_loss"]) <= 1e-5
        assert one["held_out_accuracy"] == two["held_out_accuracy"]


def test_seeds(tmp_path, checkpoint):
    """One seed, one model; another has another head and order, and is evaluated on the same examples."""
    runs = []
    for number, seed in enumerate((3, 3, 4)):
        runs.append(run_of("single", tmp_path / f"{number}", checkpoint, seed=seed, epochs=1))
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])
    names = [
        [line.split(",")[0] for line in (run / "predictions.csv").read_text().splitlines()]
        for run in runs
    ]
    assert names[0] == names[2]


def test_sweep(tmp_path, checkpoint, monkeypatch):
    """A table of means and spreads, best first; what is done is not run again, and is this recipe's."""
    monkeypatch.setitem(sweep.GRIDS, "classic", {"learning_rate": (2e-3, 1e-5)})
    train = toys.write_examples(tmp_path, "pair")
    recipe = toys.recipe_of("pair", train, checkpoint, epochs=1, share=0.2)
    said: list[str] = []
    report = sweep.sweep(recipe, tmp_path / "s", "classic", 2, say=said.append)
    rows = [line.split() for line in report.splitlines()]
    assert rows[0][:3] == ["learning", "rate", "accuracy"]
    assert "±" in report
    found = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    assert [len(run["scores"]) for run in found] == [2] * 2
    best = max(sum(scores["accuracy"] for scores in run["scores"]) / 2 for run in found)
    assert f"{best:.4f}" in report.splitlines()[-2]
    runs = sorted((tmp_path / "s").glob("batch*"))
    assert len(runs) == 4
    times = [(run / "results.json").stat().st_mtime_ns for run in runs]
    assert sweep.sweep(recipe, tmp_path / "s", "classic", 2, say=silent) == report
    assert [(run / "results.json").stat().st_mtime_ns for run in runs] == times
    other = toys.recipe_of("pair", train, checkpoint, epochs=1, share=0.2, length=20)
    with pytest.raises(RunError, match="length was None and is 20"):
        sweep.sweep(other, tmp_path / "s", "classic", 2, say=silent)
    (runs[0] / "results.json").unlink()
    with pytest.raises(RunError, match="expected the scores of the run"):
        sweep.sweep(recipe, tmp_path / "s", "classic", 2, say=silent)


def test_several_labels_and_weights(tmp_path, checkpoint):
    """Two options with heads and reports of their own."""
    rows = [{"text": f"{a} in {b}", "label": f"{a},{b}"} for a in toys.NAMES for b in toys.TOWNS]
    path = toys.write_rows(tmp_path / "several.csv", rows * 2)
    recipe = toys.recipe_of("single", path, checkpoint, several=True, epochs=3, share=0.25)
    folder = finetune(recipe, tmp_path / "several", say=silent)
    scores = json.loads((tmp_path / "several" / "results.json").read_text())["scores"]
    assert list(scores) == ["micro_f1", "macro_f1", "accuracy"]
    told = bertfast.load(folder)("anna in paris")
    assert set(told.labels) == {n for n, p in told.probabilities.items() if p > 0.5}
    train = toys.write_examples(tmp_path, "single")
    recipe = toys.recipe_of("single", train, checkpoint, weights="balanced", epochs=1)
    card = (finetune(recipe, tmp_path / "weights", say=silent) / "README.md").read_text()
    assert "class weights: balanced" in card
    assert "--weights balanced" in card


def test_glue(tmp_path, checkpoint):
    """A task by its name: GLUE's files, columns, labels and metrics; its own split to evaluate on."""
    folder = tmp_path / "glue" / "MRPC"
    folder.mkdir(parents=True)
    names = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    for part, count in (("train", 16), ("dev", 6), ("test", 4)):
        first = ("index", *names[1:]) if part == "test" else names
        lines = [first, *((str(n % 2), "1", "2", f"in {n} rome", "a film") for n in range(count))]
        (folder / f"{part}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    said: list[str] = []
    recipe = toys.recipe_of("mrpc", folder.parent, checkpoint, epochs=1)
    model = finetune(recipe, tmp_path / "run", say=said.append)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["examples"] == {"train": 16, "dev": 6}
    assert list(results["scores"]) == ["f1", "accuracy"]
    card = (model / "README.md").read_text()
    assert "evaluated on 6 examples: the task's own" in card
    assert "bertfast finetune mrpc glue" in card
    assert not any("are held out" in line for line in said)
    result = CliRunner().invoke(main, ["predict", str(model), str(folder / "test.tsv")])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prediction"] in ("0", "1") for row in rows] == [True] * 4
    assert rows[3]["#1 String"] == "in 3 rome"


def test_a_file_without_a_header(tmp_path, checkpoint):
    """Its columns are named, to train and to predict; the format too, where the file's name does not tell."""
    train = tmp_path / "mails"
    train.write_text("".join(f"x{n % 2}\ta {n % 2} film\n" for n in range(20)))
    columns = ["--header", "kind,mail", "--input-format", "tsv"]
    command = [
        "finetune",
        "single",
        str(train),
        "--model",
        str(checkpoint),
        "-o",
        str(tmp_path / "r"),
    ]
    command += [*columns, "--text", "mail", "--label", "kind", "--batch", "8", "--epochs", "1"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    card = (tmp_path / "r" / "model" / "README.md").read_text()
    assert "--text mail --label kind --header kind,mail --input-format tsv" in card
    command = ["predict", str(tmp_path / "r" / "model"), str(train), *columns]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["mail"] for row in rows] == [f"a {n % 2} film" for n in range(20)]
    assert {row["prediction"] for row in rows} <= {"x0", "x1"}


def test_command_line(tmp_path, checkpoint):
    """A run, what it says, and the width of the help."""
    train = toys.write_examples(tmp_path, "tokens")
    command = [
        "finetune",
        "tokens",
        str(train),
        "--model",
        str(checkpoint),
        "-o",
        str(tmp_path / "r"),
    ]
    command += [
        "--epochs",
        "1",
        "--batch",
        "8",
        "--length",
        "8",
        "--long",
        "truncate",
        "--freeze",
        "1",
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "examples are held out to evaluate on" in result.output
    assert "examples are longer than 8 tokens and lose their end" in result.output
    recipe = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert (recipe["freeze"], recipe["length"], recipe["long"]) == (1, 8, "truncate")
    for name in ("finetune", "predict"):
        shown = CliRunner().invoke(main, [name, "--help"], terminal_width=80).output
        assert max(map(len, shown.splitlines())) <= 80
