"""`bertfast predict` and `bertfast.load`: every task, from and to every kind of file, and models of others."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from typing import Any

import pytest
from click.testing import CliRunner, Result

import bertfast
from bertfast.cli import main
from bertfast.errors import ArgumentError, CheckpointError
from bertfast.tasks import form as forms
from bertfast.tasks import predictor as predicting
from bertfast.tasks.kinds import Classification, Entity
from harness import toys

pytestmark = pytest.mark.xdist_group("finetuning")
TEXTS = [
    "a good film",
    'a "bad" film, very',
    "long day ' in the home of carl",
    "北京 i",
    "a bad film",
]
CONTEXT = (
    "It was a long day . Anna went to Cafe\u0301 Oslo by train ." + " Nothing else happened ." * 5
)
ASKS: dict[str, list[Any]] = {
    "single": TEXTS,
    "regression": TEXTS,
    "pair": [(text, text[::-1]) for text in TEXTS],
    "choice": [(text, [text, "home", "paris " * n]) for n, text in enumerate(TEXTS, 1)],
    "tokens": [*TEXTS, ["Anna", "Smith", "北京", "\u0301", "x"]],
    "qa": [("where did anna go", CONTEXT), ("who", "it was Carl"), ("where is it", CONTEXT[20:])],
}


@pytest.fixture(scope="module")
def loaded(tuned) -> dict[str, predicting.Predictor]:
    return {task: bertfast.load(run / "model") for task, run in tuned.items()}


def predict(*arguments: Any, **options: Any) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], **options)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("task", toys.TASKS)
def test_an_answer_depends_on_its_text_alone(loaded, task, monkeypatch):
    """Bits, whatever stands beside it, in any order, in batches and parts of any size."""
    predictor, texts = loaded[task], ASKS[task]
    want = predictor(texts)
    assert len(want) == len(texts)
    assert want == [predictor([text])[0] for text in texts]
    assert want == predictor(texts[::-1])[::-1]
    assert want == list(predictor.iterate(iter(texts), batch_tokens=1))
    monkeypatch.setattr(predicting, "WINDOW", 2)
    assert want == predictor(iter(texts), batch_tokens=50)
    assert predictor([]) == []
    assert predictor(texts[1]) == want[1]  # alone


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("in.csv", "out.csv"),
        ("in.tsv", "out.tsv"),
        ("in.jsonl", "out.jsonl"),
        ("in.csv", "out.jsonl"),
    ],
)
def test_tables(tuned, loaded, tmp_path, source, target):
    """The rows in their order with all their columns, quotes and commas too, and the answers."""
    rows = [{"id": f"n{n}", "text": text, "more": 'x "y"'} for n, text in enumerate(TEXTS)]
    path, output = tmp_path / source, tmp_path / target
    if source.endswith("jsonl"):
        rows = [{**row, "list": [1, None], "yes": True} for row in rows]
        toys.write_lines(path, rows)
    elif source.endswith("tsv"):
        lines = ["\t".join(row) for row in (rows[0], *(row.values() for row in rows))]
        path.write_text("\n".join(lines) + "\n")
    else:
        toys.write_rows(path, rows)
    result = predict(tuned["single"] / "model", path, "-o", output)
    assert result.exit_code == 0, result.output
    text = output.read_text()
    if target.endswith("jsonl"):
        got = [json.loads(line) for line in text.splitlines()]
    elif target.endswith("tsv"):
        first, *lines = [line.split("\t") for line in text.splitlines()]
        got = [dict(zip(first, line, strict=True)) for line in lines]
    else:
        got = read_csv(text)
    for row, found, answer in zip(rows, got, loaded["single"](TEXTS), strict=True):
        assert list(found) == [*row, "prediction", "probability"]
        assert {name: found[name] for name in row} == row
        assert found["prediction"] == answer.label
        assert f"{float(found['probability']):.6g}" == f"{answer.probability:.6g}"


def test_other_tasks(tuned, loaded, tmp_path):
    """A table of pairs, numbers and choices; columns by other names."""
    pairs = [{"a": a, "b": b, "label": "?"} for a, b in ASKS["pair"]]
    path, output = toys.write_rows(tmp_path / "p.csv", pairs), tmp_path / "out.jsonl"
    assert (
        predict(
            tuned["pair"] / "model", path, "-o", output, "--text", "a", "--text-pair", "b"
        ).exit_code
        == 0
    )
    got = [json.loads(line) for line in output.read_text().splitlines()]
    want = loaded["pair"](ASKS["pair"])
    assert [(row["prediction"], row["probability"]) for row in got] == [
        answer[:2] for answer in want
    ]
    path = toys.write_rows(tmp_path / "r.csv", [{"text": text} for text in TEXTS])
    assert predict(tuned["regression"] / "model", path, "-o", tmp_path / "r.tsv").exit_code == 0
    got = [
        float(line.split("\t")[-1]) for line in (tmp_path / "r.tsv").read_text().splitlines()[1:]
    ]
    assert got == [float(f"{value:.6g}") for value in loaded["regression"](TEXTS)]
    rows = [
        {"text": text, **dict(zip("xyz", choices, strict=True))} for text, choices in ASKS["choice"]
    ]
    path = toys.write_rows(tmp_path / "c.csv", rows)
    assert (
        predict(
            tuned["choice"] / "model",
            path,
            "-o",
            tmp_path / "c",
            "--format",
            "csv",
            "--choices",
            "x,y,z",
        ).exit_code
        == 0
    )
    got = read_csv((tmp_path / "c").read_text())
    assert [int(row["prediction"]) for row in got] == [
        a.index for a in loaded["choice"](ASKS["choice"])
    ]


def test_questions(tuned, loaded, tmp_path):
    """SQuAD's json to the json of its script, and with offsets to jsonl; a table of questions too."""
    model, path = tuned["qa"] / "model", toys.write_examples(tmp_path, "qa", 6)
    data = json.loads(path.read_text())["data"]
    asked = [
        (q["id"], q["question"], p["context"])
        for a in data
        for p in a["paragraphs"]
        for q in p["qas"]
    ]
    want = loaded["qa"]([pair for _, *pair in asked])
    assert predict(model, path, "-o", tmp_path / "out.json").exit_code == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told == {name: answer.text for (name, *_), answer in zip(asked, want, strict=True)}
    assert list(told) == [name for name, *_ in asked]
    assert predict(model, path, "-o", tmp_path / "out.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, (name, question, context), answer in zip(rows, asked, want, strict=True):
        assert (row["id"], row["question"]) == (name, question)
        assert row["prediction"] == context[row["start"] : row["stop"]] == answer.text
    table = [{"q": question, "c": context} for _, question, context in asked]
    path = toys.write_rows(tmp_path / "q.csv", table)
    assert (
        predict(model, path, "-o", tmp_path / "q.tsv", "--text", "q", "--text-pair", "c").exit_code
        == 0
    )
    told = [line.split("\t")[2] for line in (tmp_path / "q.tsv").read_text().splitlines()[1:]]
    assert told == [answer.text for answer in want]


def test_words(tuned, loaded, tmp_path):
    """CoNLL to CoNLL; entities of lists, texts and lines."""
    model, path = tuned["tokens"] / "model", toys.write_examples(tmp_path, "tokens", 5)
    sentences = [
        [line.split()[0] for line in part.splitlines()]
        for part in path.read_text().split("\n\n")
        if part.strip()
    ]
    assert predict(model, path, "-o", tmp_path / "out.conll").exit_code == 0
    parts = (tmp_path / "out.conll").read_text().strip().split("\n\n")
    told = [[line.split("\t") for line in part.splitlines()] for part in parts]
    assert [[word for word, _ in part] for part in told] == sentences
    kind = loaded["tokens"].kind
    found = loaded["tokens"].found(sentences)
    assert [[tag for _, tag in part] for part in told] == [
        t.labels for t in kind.tags(sentences, found)
    ]
    lines = toys.write_lines(tmp_path / "w.jsonl", [{"text": item} for item in ASKS["tokens"]])
    plain = tmp_path / "w.txt"
    plain.write_text("".join(f"{text}\n" for text in TEXTS))
    table = toys.write_rows(tmp_path / "w.csv", [{"text": text} for text in TEXTS])
    for source in (lines, plain, table):
        output = tmp_path / f"{source.name}.jsonl"
        assert predict(model, source, "-o", output).exit_code == 0
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        asked = [row["text"] for row in rows]
        for row, entities in zip(rows, loaded["tokens"](asked), strict=True):
            assert [Entity(**entity) for entity in row["prediction"]] == entities


def test_standard_input_and_output(tuned, loaded, tmp_path):
    """A text a line; or a table, by its descriptor."""
    model = tuned["single"] / "model"
    want = [answer.label for answer in loaded["single"](TEXTS)]
    result = predict(model, "-", input="".join(f"{text}\n" for text in TEXTS))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["text"], row["prediction"]) for row in rows] == list(zip(TEXTS, want, strict=True))
    path = toys.write_rows(tmp_path / "in.csv", [{"text": text, "n": "1"} for text in TEXTS])
    before = os.dup(0)
    try:
        with open(path) as handle:
            os.dup2(handle.fileno(), 0)
            result = predict(model, "-", "--input-format", "csv", "--format", "csv")
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert result.exit_code == 0, result.output
    assert [(row["n"], row["prediction"]) for row in read_csv(result.stdout)] == [
        ("1", label) for label in want
    ]
    blank = predict(model, "-", input="a\n\nb\n")  # rows keep the numbers of lines
    assert [json.loads(line)["text"] for line in blank.stdout.splitlines()] == ["a", "", "b"]
    result = predict(tuned["pair"] / "model", "-", input="a\n")
    assert result.exit_code == 2
    assert "the task pair asks about more than one text" in result.output


def test_atomic(tuned, tmp_path, monkeypatch):
    """A bad row, a full disk in the middle, a clash of names, a tab in a tsv: the old output stays, and no other."""
    model, output = tuned["single"] / "model", tmp_path / "out" / "out.csv"
    output.parent.mkdir()
    output.write_text("old")
    bad = toys.write_rows(tmp_path / "bad.csv", [{"text": t} for t in (*TEXTS, " ", *TEXTS)])
    clash = toys.write_rows(tmp_path / "clash.csv", [{"text": "a", "probability": "1"}])
    tab = toys.write_lines(tmp_path / "tab.jsonl", [{"text": "a"}, {"text": "a\tb"}])
    good = toys.write_rows(tmp_path / "good.csv", [{"text": text} for text in TEXTS])
    monkeypatch.setattr(predicting, "WINDOW", 2)
    answers, calls = Classification.answers, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return answers(*arguments)

    for source, code, said, more in (
        (bad, 2, "line 7: text: expected a text, got an empty one", ()),
        (clash, 2, "no column 'probability', which is written", ()),
        (tab, 2, "csv or jsonl for these rows, got tsv, and a tab", ("--format", "tsv")),
        (good, 1, "No space left", ()),
        (tmp_path / "none.csv", 2, "none.csv: cannot be read", ()),
        (good, 2, "no field 'words', only text", ("--text", "words")),
        (
            good,
            2,
            "--format: expected csv, tsv or jsonl, of this task, got conll",
            ("--format", "conll"),
        ),
    ):
        if code == 1:
            monkeypatch.setattr(Classification, "answers", full)
        result = predict(model, source, "-o", output, *more)
        monkeypatch.setattr(Classification, "answers", answers)
        assert result.exit_code == code, result.output
        assert said in result.output
        assert output.read_text() == "old"
        assert os.listdir(output.parent) == ["out.csv"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"columns": {}}', '{"columns": {"x": 1}, "labels": []}']
)
def test_a_damaged_task(tuned, tmp_path, content):
    shutil.copytree(tuned["single"] / "model", tmp_path / "model")
    (tmp_path / "model" / forms.FILE).write_text(content)
    with pytest.raises(CheckpointError, match=forms.FILE):
        bertfast.load(tmp_path / "model")


def test_wrong_texts(loaded):
    for task, texts, said in (
        ("pair", ["a"], r"texts\[0\]: expected a pair of strings, got 'a'"),
        ("single", [3], r"texts\[0\]: expected a string or a pair of strings, got 3"),
        ("choice", [("a", ["b"])], r"texts\[0\]: expected \(text, 3 choices\)"),
        ("qa", ["a"], r"texts\[0\]: expected \(question, context\)"),
        ("tokens", [3], r"texts\[0\]: expected a text or a list of words"),
    ):
        with pytest.raises(ArgumentError, match=said):
            loaded[task](texts)
    with pytest.raises(ArgumentError, match="batch_tokens: expected"):
        loaded["single"](["a"], batch_tokens=0)
