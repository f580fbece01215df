"""`bertfast reproduce` on small files in the real form, with a model of two layers."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

import bertfast
from bertfast.cli import main
from bertfast.models.pretraining import save_model
from bertfast.tasks import glue, published
from bertfast.tasks.parameters import explanation
from bertfast.tasks.predictor import load
from bertfast.training import reproduce as module
from bertfast.training.reproduce import reproduce
from bertfast.training.run import Stopped
from harness.stores import uniform_documents, write_store

from .published_files import write_conll, write_glue, write_squad, write_swag
from .runs import CONFIG


@pytest.fixture(scope="module")
def model(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "tiny"
    made = bertfast.BertForPreTraining(bertfast.BertConfig(vocab_size=store.vocab_size, **CONFIG))
    save_model(made, made.state_dict(), store.tokenizer_folder, folder)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(main, ["reproduce", *(str(word) for word in arguments)])


def boards_of(folder: Path) -> list[dict]:
    return json.loads((folder / module.FILE).read_text())["boards"]


def ours(board: dict) -> dict[str, dict[str, float]]:
    """Our figures by split."""
    rows = [row for row in board["rows"] if row["system"] == "ours, tiny"]
    return {row["split"]: row["figures"] for row in rows}


def test_squad(model, tmp_path):
    for version, count in (("v1.1", 33), ("v2.0", 49)):
        for part, questions in (("train", count), ("dev", 9)):
            write_squad(tmp_path / f"{part}-{version}.json", questions, version == "v2.0")
    made = run("squad", "--model", model, "--data-dir", tmp_path, "-o", tmp_path / "run")
    assert made.exit_code == 0, made.output
    first, second = boards_of(tmp_path / "run")
    assert (first["title"], second["title"]) == ("SQuAD 1.1", "SQuAD 2.0")
    figures = ours(first)["dev"]
    assert 0 <= figures["exact match"] <= figures["F1"] <= 100
    assert set(ours(second)["dev"]) >= {"F1", "null_f1"}
    assert load(tmp_path / "run/v2.0/lr5e-05/model").form.nulls
    row = next(line for line in made.stdout.splitlines() if line.startswith("ours, tiny"))
    assert row.split()[-2:] == [f"{figures[name]:.1f}" for name in ("exact match", "F1")]
    recipes = json.loads((tmp_path / "run" / module.FILE).read_text())["recipes"]
    told = {part: (r["epochs"], r["batch"], r["learning_rate"]) for part, r in recipes.items()}
    assert told == {"v1.1": (3, 32, 5e-5), "v2.0": (2, 48, 5e-5)}


def test_glue_whole(model, tmp_path):
    """All nine tasks: averages, submissions; what is done is not done again."""
    for name in glue.TASKS:
        write_glue(tmp_path, name)
    given = ("glue", str(model), tmp_path, tmp_path / "run")
    (board,) = reproduce(*given)
    row = board.rows[0]
    assert set(row.figures) == set(published.GLUE.metrics)
    dev = {name: glue.TASKS[name].metrics for name in glue.TASKS if name != "mnli"}
    results = {n: {m: row.figures[f"{n} {m}"] for m in metrics} for n, metrics in dev.items()}
    results["mnli"] = {side: row.figures[f"mnli {side}"] for side in ("matched", "mismatched")}
    assert abs(row.figures[published.SCORE] - glue.average(results)) < 1e-9
    names = {file for task in glue.TASKS.values() for file in task.submission.values()}
    files = {path.name: path for path in (tmp_path / "run/submission").iterdir()}
    assert set(files) == names
    lines = files["MNLI-mm.tsv"].read_text().splitlines()
    assert len(lines) == 37
    assert {line.split("\t")[1] for line in lines[1:]} <= set(glue.TASKS["mnli"].labels)
    said: list[str] = []
    assert reproduce(*given, say=said.append) == [board]
    assert said == [f"{name}: done" for name in glue.TASKS]


def test_a_stopped_run_goes_on(model, tmp_path, monkeypatch):
    """After the first of two learning rates; of a task that is alone there."""
    write_glue(tmp_path, "rte")
    trained: list[str] = []

    def finetune(recipe, folder, **options):
        if len(trained) == 1:
            trained.append("stopped")
            raise Stopped(3, signal.SIGINT)
        trained.append(folder.name)
        return original(recipe, folder, **options)

    original = module.finetune
    monkeypatch.setattr(module, "finetune", finetune)
    monkeypatch.setitem(module.rates_of.__globals__["RATES"], "glue", (5e-5, 1e-2))
    given = ("glue", str(model), tmp_path, tmp_path / "run")
    stopped = run(
        *("glue", "--model", model, "--data-dir", tmp_path, "-o", tmp_path / "run", "--sweep")
    )
    assert stopped.exit_code == 128 + signal.SIGINT
    assert "after step 3; the same command goes on there" in stopped.output
    (board,) = reproduce(*given, sweep=True)
    assert trained == ["lr5e-05", "stopped", "lr0.01"]
    done = json.loads((tmp_path / "run/rte/figures.json").read_text())
    scores = {rate: values["accuracy"] for rate, values in done["rates"]}
    assert scores[done["learning_rate"]] == max(scores.values())
    assert board.rows[0].figures == {"rte accuracy": 100 * max(scores.values())}
    with pytest.raises(bertfast.errors.RunError, match="begun with another sweep, True"):
        reproduce(*given)


def test_mnli_and_swag(model, tmp_path):
    write_glue(tmp_path, "mnli")
    (tmp_path / "diagnostic/diagnostic.tsv").unlink()
    said: list[str] = []
    (board,) = reproduce("mnli", str(model), tmp_path, tmp_path / "mnli", say=said.append)
    assert board.title == "MultiNLI"
    assert set(board.rows[0].figures) == {"mnli matched", "mnli mismatched"}
    assert "MNLI: no ../diagnostic/diagnostic.tsv, so no AX.tsv" in said
    for name in ("train", "val"):
        write_swag(tmp_path / f"{name}.csv", 20)
    (board,) = reproduce("swag", str(model), tmp_path, tmp_path / "swag")
    assert 0 <= board.rows[0].figures["accuracy"] <= 100
    predictor = load(tmp_path / "swag/swag/lr2e-05/model")
    form, path = predictor.form, str(tmp_path / "val.csv")
    examples = predictor.kind.examples(form, predictor.kind.open(form, path, "dev"), True)
    assert examples.inputs[1][1][1] == "He roof, all day."
    assert examples.gold[1] == 1
    assert "--prefix sent2" in (tmp_path / "swag/swag/lr2e-05/model/README.md").read_text()


@pytest.mark.parametrize("names", ["eng.train eng.testa eng.testb", "train.txt valid.txt test.txt"])
def test_ner(names, model, tmp_path):
    for name in names.split():
        write_conll(tmp_path / name, 36)
    (board,) = reproduce("ner", str(model), tmp_path, tmp_path / "run")
    assert [row.split for row in board.rows[:2]] == ["dev", "test"]
    assert board.rows[0].figures == board.rows[1].figures  # the files are the same
    labels = load(tmp_path / "run/ner/lr5e-05/model").form.labels
    assert labels == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


def test_next_sentences(model, store, tmp_path):
    tokenizer = store.tokenizer_folder
    data = write_store(tmp_path / "data", tokenizer, [uniform_documents(tokenizer, 100, 3)])
    made = run("nsp", "--model", model, "--data-dir", data.folder, "-o", tmp_path / "run")
    assert made.exit_code == 0, made.output
    (board,) = boards_of(tmp_path / "run")
    systems = [row["system"] for row in board["rows"]]
    assert systems[0] == "ours, tiny, easy pairs"
    assert systems[-1] == "BERT"
    assert "ours, tiny, hard pairs" in systems
    accuracy, interval = board["rows"][0]["figures"].values()
    assert interval[0] < accuracy < interval[1]
    assert "97 to 98" in made.stdout


def test_parameters(model):
    made = run("params", "--model", model)
    assert made.exit_code == 0, made.output
    sizes = {name: values.numel() for name, values in load_weights(model).items()}
    encoder = sum(size for name, size in sizes.items() if name.startswith("bert."))
    lines = [line.split() for line in made.stdout.splitlines()]
    assert ["all", "without", "heads", f"{encoder:,}"] in lines
    assert ["all", f"{sum(sizes.values()):,}"] in lines
    assert "110 x 1,048,576 = 115,343,360" in made.stdout.replace("\n  ", " ")


def load_weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["squad", "glue", "swag", "ner", "nsp", "params"])
def test_dry_run(name, model, tmp_path):
    """Without a file: what is missing, the recipe and the figures; nothing is written."""
    made = run(name, "--model", model, "--data-dir", tmp_path, "--dry-run")
    assert made.exit_code == 0, made.output
    figure = {"squad": "91.2", "glue": "80.5", "swag": "86.3", "ner": "92.4", "nsp": "97 to 98"}
    assert figure.get(name, "340,000,000") in made.stdout
    missing = {
        "squad": "missing train-v1.1.json, dev-v1.1.json",
        "glue": "missing MNLI/train.tsv, MNLI/dev_matched.tsv, MNLI/dev_mismatched.tsv",
        "ner": "missing eng.train, eng.testa, eng.testb",
        "swag": "batches of 16, learning rate 2e-05, warm-up 0.1, weight decay 0.01",
    }
    assert missing.get(name, "") in made.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_counts_steps(model, tmp_path):
    for name in ("train", "val"):
        write_swag(tmp_path / f"{name}.csv", 40)
    made = run("swag", "--model", model, "--data-dir", tmp_path, "--dry-run")
    assert "found train.csv, val.csv; missing nothing" in made.stdout
    assert "\n  6 steps\n" in made.stdout  # 40 / 16 is nearest to 2, three times
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("all", "'all' is not one of 'squad', 'glue'"),
        ("glue --data-dir D -o R", "there is no CoLA/train.tsv, CoLA/dev.tsv, SST-2/train.tsv"),
        ("squad --data-dir D -o R", "there is no dev-v1.1.json. They come from https://raj"),
        ("swag --data-dir D", "--output: expected the folder of the run"),
        ("swag -o R", "--data-dir: expected the folder of the files"),
        ("nsp", "--data-dir: expected a store"),
        ("nsp --data-dir D", "expected a store with the file store.json"),
        ("swag --data-dir D --sweep --dry-run", "--sweep: expected with glue, mnli, ner, got swag"),
        ("params --model none", "none"),
    ],
)
def test_mistakes(arguments, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "D").mkdir()
    write_squad(tmp_path / "D/train-v1.1.json", 3)
    given = arguments if "--model" in arguments else f"{arguments} --model {model}"
    made = run(*given.split())
    assert made.exit_code == 2
    assert message in made.output
    assert not (tmp_path / "R").exists()


def test_docs(model, tmp_path, monkeypatch):
    """docs/reproduce.md: its commands are understood, its figures are those of the data."""
    text = (Path(__file__).parents[2] / "docs/reproduce.md").read_text("utf-8")
    boards = [*published.SQUAD.values(), published.GLUE, published.MNLI, published.SWAG]
    boards += [published.NER, published.NSP, published.PARAMETERS._replace(notes=explanation())]
    for board in boards:
        assert board.as_text() in text
    monkeypatch.chdir(tmp_path)
    lines = [line.split() for line in text.splitlines() if line.startswith("bertfast reproduce")]
    assert {words[2] for words in lines} == set(published.NAMES)
    for words in lines:
        given = [str(model) if word == "MODEL" else word for word in words[2:]]
        made = run(*given, "--dry-run")
        assert made.exit_code == 0, made.output
