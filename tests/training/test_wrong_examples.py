"""What is wrong with data, options and models of fine-tuning: each says so, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner

import bertfast
from bertfast.cli import main
from bertfast.errors import ArgumentError, BertfastError, CheckpointError, InputFileError, RunError
from bertfast.tasks import report
from bertfast.tasks.supervised import Supervised
from bertfast.training import loop, run, state
from bertfast.training.finetuning import Job, finetune
from harness import seeds, toys
from harness.disk import full_after

pytestmark = pytest.mark.xdist_group("finetuning")


def silent(line: str) -> None:
    pass


def texts_of(labels: list[Any], texts: list[str] | None = None) -> list[dict[str, Any]]:
    texts = texts or [f"a {label}" for label in labels]
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


GOOD = texts_of(["x", "y"] * 10)
WORDS = {"text": ["a", "b"], "label": ["O", "X"]}
ASKED = {"question": "a", "context": "b"}
CHOICE = {"text": "a", "choices": ["b", "c"], "label": 0}
CONLL = "anna B-PER\nwent O\n\n" * 10


def write(path: Path, content: Any) -> Path:
    if isinstance(content, str):
        path.write_text(content)
        return path
    return (toys.write_lines if path.suffix == ".jsonl" else toys.write_rows)(path, content)


@pytest.mark.parametrize(
    ("task", "name", "train", "said"),
    [
        ("single", "a.csv", [{"words": "a", "label": "x"}] * 20, "no field 'text', only words, label"),
        ("single", "a.csv", [{"text": "a", "kind": "x"}] * 20, "no field 'label', only text, kind"),
        ("pair", "a.csv", GOOD, "no field 'text_pair', only text, label"),
        ("choice", "a.jsonl", GOOD, "no field 'choices', only text, label"),
        ("single", "a.csv", GOOD[:3] + texts_of(["x"], [" "]), "line 5: text: expected a text, got an empty one"),
        ("single", "a.csv", texts_of(["x"] * 20), "at least two labels, got only 'x'"),
        ("single", "a.csv", texts_of(["x", ""] * 10), "line 3: label: expected a label, got an empty one"),
        ("single", "a.csv", "text,label\n\"a\",x\na,b,c\n", "line 3: expected 2 fields"),
        ("single", "a.csv", GOOD[:7], "expected at least a batch of 8 examples, got 6"),
        ("single", "a.csv", "a,x\nb,y\n" * 9, "line 1: no field 'text', only a, x"),
        ("single", "a.csv", GOOD[:1], "at least two labels"),
        ("single", "a.txt", "a\n", "kind|csv"),
        ("single", "none.csv", None, "none.csv: cannot be read"),
        ("regression", "a.csv", texts_of(["1.5", "much"] * 10), "line 3: label: expected a number, got 'much'"),
        ("regression", "a.csv", texts_of(["1.5", "nan"] * 10), "line 3: label: expected a number"),
        ("tokens", "a.conll", CONLL + "to O X\n", "line 31: expected 2 columns as before, got 3"),
        ("tokens", "a.conll", CONLL + "to\n", "line 31: expected 2 columns as before, got 1"),
        ("tokens", "a.conll", "anna O\n\n" * 20, "at least two labels, got only O"),
        ("tokens", "a.jsonl", [WORDS, {**WORDS, "text": ["a"]}], "line 2: expected 1 labels, got 2"),
        ("tokens", "a.jsonl", [{**WORDS, "text": "a b"}], "line 1: text: expected a list of strings"),
        ("choice", "a.jsonl", [{**CHOICE, "label": 2}] * 9, "line 1: label: expected a label of 0, 1, got '2'"),
        ("choice", "a.jsonl", [{**CHOICE, "choices": ["b"]}] * 9, "expected a list of two texts or more"),
        ("choice", "a.jsonl", [CHOICE, {**CHOICE, "choices": ["b"] * 3}], "line 2: expected 2 choices, got 3"),
        ("qa", "a.jsonl", [{"text": "a", "context": "b"}], "no field 'question', only text, context"),
        ("qa", "a.jsonl", [{"question": "a", "context": "b"}], "no field 'answers'"),
        ("qa", "a.jsonl", [{**ASKED, "answers": {"text": ["b"]}}], "line 1: answers: answer_start: expected list"),
        ("qa", "a.jsonl", [{**ASKED, "answers": {"text": ["b"], "answer_start": []}}], "got 0 and 1"),
        ("qa", "a.jsonl", [{**ASKED, "answers": "b"}], "expected list, got str"),
        ("qa", "a.json", '{"data": []}', "expected questions, got none"),
    ],
)  # fmt: skip
def test_wrong_files(task, name, train, said, tmp_path, checkpoint):
    path = tmp_path / name
    if train is not None:
        write(path, train)
    recipe = toys.recipe_of(task, path, checkpoint)
    with pytest.raises(BertfastError, match=said.replace("(", r"\(")) as caught:
        finetune(recipe, tmp_path / "run", say=silent)
    if isinstance(caught.value, InputFileError):
        assert name in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "name", "train", "dev", "said"),
    [
        ("single", "a.csv", GOOD, texts_of(["x", "z"]), "line 3: label: expected a label of x, y, got 'z'"),
        ("single", "a.csv", GOOD, [{"text": "a"}], "no field 'label', only text"),
        ("tokens", "a.conll", CONLL, "oslo B-LOC\n", "line 1: expected a label of O, B-PER, I-PER, got 'B-LOC'"),
    ],
)  # fmt: skip
def test_wrong_files_to_evaluate_on(task, name, train, dev, said, tmp_path, checkpoint):
    path, other = write(tmp_path / name, train), write(tmp_path / f"dev_{name}", dev)
    with pytest.raises(InputFileError, match=rf"dev_{name}.*{said}"):
        finetune(
            toys.recipe_of(task, path, checkpoint, dev=str(other)), tmp_path / "run", say=silent
        )


def test_unknown_labels_of_several(tmp_path, checkpoint):
    path = write(tmp_path / "a.csv", texts_of(["x,y", ""] * 10))
    other = write(tmp_path / "b.csv", texts_of(["x", "x,z"]))
    with pytest.raises(
        InputFileError, match=r"b.csv, line 3: label: expected labels of x, y, got 'z'"
    ):
        Job(toys.recipe_of("single", path, checkpoint, dev=str(other), several=True), silent)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "parse"}, "task: expected one of single, pair, choice, qa, tokens, regression, got 'parse'"),
        ({"epochs": 0}, "epochs: expected a whole number, at least 1, got 0"),
        ({"batch": 2.5}, "batch: expected a whole number"),
        ({"patience": -1}, "patience: expected a whole number, 0 or more, got -1"),
        ({"weights": "rare"}, "weights: expected balanced, or none, got 'rare'"),
        ({"length": 7}, "max_length: expected a whole number, at least 8, got 7"),
        ({"length": 65}, "length: expected at most 64, the model's positions, got 65"),
        ({"stride": 0}, "stride: expected a whole number, at least 1, got 0"),
        ({"long": "cut"}, "long: expected one of truncate, slide, got 'cut'"),
        ({"language": "de"}, "language: expected one of en, zh, got 'de'"),
        ({"share": 1.0}, "share: expected a number between 0 and 1, got 1.0"),
        ({"seed": -1}, "seed"),
        ({"freeze": "all"}, "freeze: expected embeddings, encoder or a number of layers up to 2, got 'all'"),
        ({"freeze": 3}, "freeze: expected .* up to 2, got 3"),
        ({"freeze": True}, "freeze: expected .* got True"),
        ({"group": "title"}, "no field 'title'"),
        ({"task": "regression", "several": True}, "several: expected the task single or pair, got regression"),
        ({"task": "choice", "long": "slide"}, "long: expected truncate, with the task choice, got slide"),
        ({"task": "qa", "long": "truncate"}, "long: expected slide, with the task qa, got truncate"),
        ({"task": "tokens", "weights": "balanced"}, "weights: expected a task with single labels, got tokens"),
        ({"task": "tokens", "group": "title"}, "group: expected a file with columns, got 'title'"),
        ({"task": "qa", "group": "id"}, "group: expected title, of questions, got 'id'"),
        ({"model": "nowhere/at-all"}, "nowhere"),
    ],
)  # fmt: skip
def test_wrong_recipes(changes, said, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task = changes.get("task", "single")
    known = task if task in toys.TASKS else "single"
    train = toys.write_examples(tmp_path, known)
    given = {"task": task, "train": train, "model": checkpoint, **changes}
    with pytest.raises(BertfastError, match=said):
        finetune(toys.recipe_of(**given), tmp_path / "run", say=silent)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_begun_again_after_a_mistake(tmp_path, checkpoint):
    """A run that saved nothing may begin with another recipe; one that did may not."""
    train = toys.write_examples(tmp_path, "single")
    for freeze in ("all", "encoder"):
        recipe = toys.recipe_of("single", train, checkpoint, freeze=freeze, epochs=1)
        if freeze == "all":
            with pytest.raises(ArgumentError, match="freeze"):
                finetune(recipe, tmp_path / "run", say=silent)
        else:
            finetune(recipe, tmp_path / "run", say=silent)
    with pytest.raises(RunError, match="freeze was 'encoder' and is None"):
        finetune(
            toys.recipe_of("single", train, checkpoint, epochs=1), tmp_path / "run", say=silent
        )
    rows = train.read_text().splitlines()
    train.write_text("\n".join([*rows[:-1], rows[-1].replace("film", "day")]) + "\n")
    with pytest.raises(RunError, match="other data"):
        finetune(recipe, tmp_path / "run", say=silent)


# Answers that are not where they should be


def questions(folder: Path) -> Path:
    """20 questions; of one both answers are wrong, of one the first of two."""
    context = "anna went to oslo by train . it was a long day ."
    right, wrong = {"text": "oslo", "answer_start": 13}, {"text": "oslo", "answer_start": 3}
    answers = [[right]] * 18 + [[wrong, wrong], [wrong, right]]
    asked = [
        {"id": f"q{n}", "question": "where did anna go", "answers": a}
        for n, a in enumerate(answers)
    ]
    path = folder / "qa.json"
    path.write_text(
        json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]})
    )
    return path


@pytest.mark.parametrize("mismatched", [None, "drop", "keep"])
def test_mismatched_answers(tmp_path, checkpoint, mismatched):
    """Counted and named; left out of what is trained on, and kept in what is evaluated on, unless an option says so."""
    path, said = questions(tmp_path), []
    columns = bertfast.tasks.form.Columns(mismatched=mismatched)
    job = Job(toys.recipe_of("qa", path, checkpoint, dev=str(path), columns=columns), said.append)
    drops = mismatched != "keep", mismatched == "drop"
    assert (len(job.train.inputs), len(job.dev.inputs)) == tuple(20 - drop for drop in drops)
    for line, drop in zip(said, drops, strict=True):
        assert "3 answers are not where they should be" in line
        assert "question q18: 'oslo' is not at 3, where 'a we' stands" in line
        assert line.endswith(f"{int(drop)} questions left out")
    assert [answer.start for answer in job.train.gold[-1]] == ([13] if drops[0] else [3, 13])


def test_mismatched_by_the_command(tmp_path, checkpoint):
    path = questions(tmp_path)
    command = ["finetune", "qa", str(path), "--model", str(checkpoint), "-o", str(tmp_path / "r")]
    command += ["--mismatched", "keep", "--batch", "8", "--epochs", "1", "--length", "40"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "0 questions left out" in result.output
    assert "--mismatched keep" in (tmp_path / "r" / "model" / "README.md").read_text()
    result = CliRunner().invoke(main, [*command, "--mismatched", "mend"])
    assert result.exit_code == 2


# Models


def trained(folder: Path, checkpoint: Path, name: str, count: int) -> Path:
    seeds.restart(3)
    config = transformers.BertConfig(**toys.CONFIG, num_labels=count)
    getattr(transformers, name)(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((checkpoint / file).read_text())
    return folder


@pytest.mark.parametrize(
    ("task", "name", "count"),
    [
        ("pair", "BertForSequenceClassification", 3),  # of another number of labels
        ("single", "BertForTokenClassification", 3),  # as many, but of words
        ("tokens", "BertForSequenceClassification", 5),
        ("choice", "BertForSequenceClassification", 1),
        ("regression", "BertForMultipleChoice", 2),
    ],
)
def test_a_model_of_another_task(task, name, count, tmp_path, checkpoint):
    source = trained(tmp_path / "m", checkpoint, name, count)
    train = toys.write_examples(tmp_path, task)
    with pytest.raises(CheckpointError, match=f"{source}.* its head was made for another task"):
        finetune(toys.recipe_of(task, train, source), tmp_path / "run", say=silent)


@pytest.mark.parametrize(
    ("task", "name", "count"),
    [("pair", "BertForSequenceClassification", 2), ("qa", "BertForSequenceClassification", 3)],
)
def test_a_model_that_goes_on(task, name, count, tmp_path, checkpoint):
    """The same head, or one beside which the other has no weights of its name."""
    source = trained(tmp_path / "m", checkpoint, name, count)
    train = toys.write_examples(tmp_path, task)
    finetune(toys.recipe_of(task, train, source, epochs=1, length=40), tmp_path / "run", say=silent)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert len(config["id2label"]) == 2


# What happens on the way


def test_not_a_number(tmp_path, checkpoint, monkeypatch):
    """The run stops and names the step; the checkpoint of the epoch before stays, and is gone on from."""
    train = toys.write_examples(tmp_path, "single")
    recipe = toys.recipe_of("single", train, checkpoint, **toys.TWELVE)
    original, steps = Supervised.loss, []

    def broken(self, model, batch, totals, measured):
        loss, counted = original(self, model, batch, totals, measured)
        if steps[-1] == 6:
            loss = loss * float("nan")
            counted["loss"] = loss.detach()
        return loss, counted

    step = loop.Loop._step
    monkeypatch.setattr(loop.Loop, "_step", lambda self, n: (steps.append(n), step(self, n))[1])
    monkeypatch.setattr(Supervised, "loss", broken)
    with pytest.raises(RunError, match="step 7: the loss is nan.*lower learning_rate"):
        finetune(recipe, tmp_path / "run", say=silent)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / state.FOLDER).iterdir()] == ["step-00000004"]
    assert not (tmp_path / "run" / "model").exists()
    said: list[str] = []
    finetune(recipe, tmp_path / "run", say=said.append)
    assert any("going on after step 4" in line for line in said)


@pytest.mark.parametrize(
    ("owner", "name", "works"),
    [(Job, "save_model", 1), (run.shutil, "copytree", 0), (report, "write_predictions", 0)],
)
def test_no_space(owner, name, works, tmp_path, checkpoint):
    """While a checkpoint is saved, and while the model is finished: no half of a model; the run goes on from there."""
    train = toys.write_examples(tmp_path, "single")
    recipe = toys.recipe_of("single", train, checkpoint)
    with full_after(works, owner, name), pytest.raises(OSError, match="No space left"):
        finetune(recipe, tmp_path / "run", say=silent)
    last = "step-00000004" if works else "step-00000008"
    folders = {path.name for path in (tmp_path / "run" / state.FOLDER).iterdir()}
    assert max(folders) == last
    assert not (tmp_path / "run" / "model").exists()
    folder = finetune(recipe, tmp_path / "run", say=silent)
    assert bertfast.load(folder)("a good film").label in ("bad", "good", "long")
    assert not list((tmp_path / "run").glob(".*.tmp"))
