"""GLUE's files in their real form, its score from the published figures, its submissions."""

from __future__ import annotations

import pytest

from bertfast.errors import ArgumentError, InputFileError
from bertfast.tasks import glue

# The columns of the real files: of train and dev; of test. {} is where a text goes, < > where the label does.
COLUMNS = {
    "cola": (None, "index sentence"),
    "sst2": ("sentence label", "index sentence"),
    "mrpc": ("Quality #1_ID #2_ID #1_String #2_String", "index #1_ID #2_ID #1_String #2_String"),
    "stsb": (
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "index genre filename year old_index source1 source2 sentence1 sentence2",
    ),
    "qqp": ("id qid1 qid2 question1 question2 is_duplicate", "id question1 question2"),
    "mnli": (
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
        "sentence1 sentence2 label1 gold_label",
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
        "sentence1 sentence2",
    ),
    "qnli": ("index question sentence label", "index question sentence"),
    "rte": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
    "wnli": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
}
FIRST, SECOND = "He said \"it's", "Ça va\u00a0?"  # an open quote is text


def rows_of(name: str, part: int, labels: list[str]) -> list[list[str]]:
    """The lines of a file: names first, then an example with each label."""
    task = glue.TASKS[name]
    texts = {
        column.replace(" ", "_"): text
        for column, text in zip(task.texts, (FIRST, SECOND), strict=False)
    }
    if COLUMNS[name][part] is None:  # CoLA's train and dev
        return [["gj04", label, "*" if label == "0" else "", FIRST] for label in labels]
    columns = COLUMNS[name][part].split()
    rows = [[column.replace("_", " ") if column.startswith("#") else column for column in columns]]
    for number, label in enumerate(labels):
        cells = {**texts, task.label: label, "index": str(number), "id": str(number)}
        rows.append([cells.get(column, "x") for column in columns])
    return rows


def write(folder, name: str):
    """All files of a task; returns its labels."""
    task = glue.TASKS[name]
    labels = ["2.600", "5.000"] if task.labels is None else list(task.labels)
    for part, file in task.splits.items():
        path = folder / task.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = rows_of(name, int(part in task.submission), labels)
        mark = "\ufeff" if name == "mrpc" else ""
        path.write_text(mark + "".join("\t".join(row) + "\n" for row in rows), newline="\n")
    return labels


@pytest.mark.parametrize("name", sorted(glue.TASKS))
def test_every_file(name, tmp_path):
    task, labels = glue.TASKS[name], write(tmp_path, name)
    for part in task.splits:
        found = glue.read(tmp_path, name, part)
        assert found.texts == [[text] * len(labels) for text in (FIRST, SECOND)[: len(task.texts)]]
        if part in task.submission:
            assert found.labels is None
            assert found.index == [str(number) for number in range(len(labels))]
        else:
            expected = [2.6, 5.0] if task.labels is None else list(range(len(labels)))
            assert found.labels.tolist() == expected
            assert found.index is None


def test_broken_lines(tmp_path):
    """QQP has some in its training file, which are counted; elsewhere they are errors, as in a test file of QQP."""
    for name in ("qqp", "rte"):
        write(tmp_path, name)
    broken = {name: tmp_path / glue.TASKS[name].folder / "train.tsv" for name in ("qqp", "rte")}
    broken["test"] = tmp_path / "QQP" / "test.tsv"
    for path in broken.values():
        path.write_text(path.read_text() + "12\tcut\n")
    assert glue.read(tmp_path, "qqp", "train").dropped == [4]
    with pytest.raises(InputFileError, match=r"line 4: expected 4 fields"):
        glue.read(tmp_path, "rte", "train")
    with pytest.raises(InputFileError, match=r"line 4: expected 3 fields"):
        glue.read(tmp_path, "qqp", "test")


def test_unknown_labels(tmp_path):
    write(tmp_path, "mnli")
    path = tmp_path / "MNLI" / "dev_matched.tsv"
    path.write_text(path.read_text().replace("\tneutral\n", "\t-\n"))
    expected = "line 4: gold_label: expected a label of contradiction, entailment, neutral, got '-'"
    with pytest.raises(InputFileError, match=expected):
        glue.read(tmp_path, "mnli", "dev_matched")


# GLUE's leaderboard, and table 1 of BERT's paper
LARGE = {
    "cola": {"matthews": 60.5},
    "sst2": {"accuracy": 94.9},
    "mrpc": {"f1": 89.3, "accuracy": 85.4},
    "stsb": {"pearson": 87.6, "spearman": 86.5},
    "qqp": {"f1": 72.1, "accuracy": 89.3},
    "mnli": {"matched": 86.7, "mismatched": 85.9},
    "qnli": {"accuracy": 92.7},
    "rte": {"accuracy": 70.1},
    "wnli": {"accuracy": 65.1},
}
HUMANS = {
    "cola": {"matthews": 66.4},
    "sst2": {"accuracy": 97.8},
    "mrpc": {"f1": 86.3, "accuracy": 80.8},
    "stsb": {"pearson": 92.7, "spearman": 92.6},
    "qqp": {"f1": 59.5, "accuracy": 80.4},
    "mnli": {"matched": 92.0, "mismatched": 92.8},
    "qnli": {"accuracy": 91.2},
    "rte": {"accuracy": 93.6},
    "wnli": {"accuracy": 95.9},
}


def test_published_scores():
    assert round(glue.average(LARGE), 1) == 80.5
    assert 87.0 < glue.average(HUMANS) < 87.1
    eight = {name: figures for name, figures in LARGE.items() if name != "wnli"}
    assert abs(glue.average(eight) - (9 * glue.average(LARGE) - 65.1) / 8) < 1e-9
    assert round(glue.paper_average(LARGE), 1) == round(glue.paper_average(eight), 1) == 82.1


def test_scores_of_predictions():
    assert glue.scores("mrpc", [1, 1, 0, 1], [1, 0, 0, 1]) == {"f1": 0.8, "accuracy": 0.75}
    assert list(glue.scores("stsb", [1, 2.5, 5], [0, 1, 2])) == ["pearson", "spearman"]
    assert glue.scores("cola", [0, 1], [0, 1]) == {"matthews": 1}


def test_submissions(tmp_path):
    path = glue.write_submission(tmp_path, "mnli", "test_mismatched", ["0", "1", "2"], [2, 0, 1])
    assert path.name == "MNLI-mm.tsv"
    assert path.read_text() == "index\tprediction\n0\tneutral\n1\tcontradiction\n2\tentailment\n"
    path = glue.write_submission(tmp_path, "stsb", "test", ["0", "1", "2"], [-0.2, 2.34567, 7])
    assert path.read_text().split("\n")[1:4] == ["0\t0.000", "1\t2.346", "2\t5.000"]
    path = glue.write_submission(tmp_path, "qqp", "test", ["0"], [1])
    assert (path.name, path.read_text()) == ("QQP.tsv", "index\tprediction\n0\t1\n")
    names = [file for task in glue.TASKS.values() for file in task.submission.values()]
    assert len(set(names)) == 11  # what the server asks for


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: glue.read(p, "snli", "dev"), "task: expected cola, sst2"),
        (lambda p: glue.read(p, "mnli", "dev"), "part: expected train, dev_matched"),
        (lambda p: glue.write_submission(p, "rte", "dev", ["0"], [1]), "part: expected test, got"),
        (lambda p: glue.write_submission(p, "rte", "test", ["0"], [2]), "2 classes, got 2"),
        (lambda p: glue.write_submission(p, "rte", "test", ["0"], [0.5]), "2 classes, got 0.5"),
        (lambda p: glue.write_submission(p, "rte", "test", ["0"], [1, 1]), "expected 1 values"),
        (lambda p: glue.average({"cola": {}}), "results: .* none of mnli, mrpc, qnli, qqp"),
        (lambda p: glue.average({**LARGE, "ax": {}}), "results: .* got also ax"),
        (
            lambda p: glue.average({**LARGE, "mnli": {"accuracy": 1.0}}),
            r"results\['mnli'\]: expected matched, mismatched, got accuracy",
        ),
    ],
)
def test_bad_arguments(call, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        call(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputFileError, match=r"RTE.dev\.tsv: cannot be read"):
        glue.read(tmp_path, "rte", "dev")
