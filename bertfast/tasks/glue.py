"""GLUE's nine tasks: how their files are read and their predictions are written, and the benchmark's score."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._files import atomic_write
from ..data.labelled import columns
from ..data.labelled.tables import read_table
from ..errors import ArgumentError
from . import metrics

_METRICS = {
    "accuracy": metrics.accuracy,
    "f1": metrics.f1,
    "matthews": metrics.matthews,
    "pearson": metrics.pearson,
    "spearman": metrics.spearman,
}
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")


class Task(NamedTuple):
    """A task of GLUE.

    Fields:
        folder: its folder's name.
        texts: the one or two columns of text.
        label: the column of the label.
        labels: all labels, in the order of their numbers; None for a regression.
        metrics: the names of its metrics, in the benchmark's order.
        paper: the metric that BERT's paper reports.
        submission: by the name of a split, the file that predictions on it go to.
        splits: by name, the file of each split.
        index: the column of a test file that numbers its examples.
        header: the columns of train and dev files that have no first line of names.
        drops: train and dev files have broken lines, which everybody leaves out.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    paper: str
    submission: dict[str, str]
    splits: dict[str, str] = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}  # noqa: RUF012
    index: str = "index"
    header: tuple[str, ...] | None = None
    drops: bool = False


_MNLI_FILES = {
    "train": "train.tsv",
    "dev_matched": "dev_matched.tsv",
    "dev_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
    "diagnostic": "../diagnostic/diagnostic.tsv",  # a submission has it, but the score does not count it
}
_MNLI_SUBMISSION = {
    "test_matched": "MNLI-m.tsv",
    "test_mismatched": "MNLI-mm.tsv",
    "diagnostic": "AX.tsv",
}
_COLA_COLUMNS = ("source", "label", "annotation", "sentence")
_SENTENCES = ("sentence1", "sentence2")
TASKS = {
    "cola": Task(
        "CoLA",
        ("sentence",),
        "label",
        _BINARY,
        ("matthews",),
        "matthews",
        {"test": "CoLA.tsv"},
        header=_COLA_COLUMNS,
    ),
    "sst2": Task(
        "SST-2", ("sentence",), "label", _BINARY, ("accuracy",), "accuracy", {"test": "SST-2.tsv"}
    ),
    "mrpc": Task(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        _BINARY,
        ("f1", "accuracy"),
        "f1",
        {"test": "MRPC.tsv"},
    ),
    "stsb": Task(
        "STS-B",
        _SENTENCES,
        "score",
        None,
        ("pearson", "spearman"),
        "spearman",
        {"test": "STS-B.tsv"},
    ),
    "qqp": Task(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        _BINARY,
        ("f1", "accuracy"),
        "f1",
        {"test": "QQP.tsv"},
        index="id",
        drops=True,
    ),
    "mnli": Task(
        "MNLI",
        _SENTENCES,
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        ("accuracy",),
        "accuracy",
        _MNLI_SUBMISSION,
        _MNLI_FILES,
    ),
    "qnli": Task(
        "QNLI",
        ("question", "sentence"),
        "label",
        _ENTAILMENT,
        ("accuracy",),
        "accuracy",
        {"test": "QNLI.tsv"},
    ),
    "rte": Task(
        "RTE", _SENTENCES, "label", _ENTAILMENT, ("accuracy",), "accuracy", {"test": "RTE.tsv"}
    ),
    "wnli": Task(
        "WNLI", _SENTENCES, "label", _BINARY, ("accuracy",), "accuracy", {"test": "WNLI.tsv"}
    ),
}


class Examples(NamedTuple):
    """texts: one or two lists of texts. labels: class numbers int64, or scores float64; None of a test file. index:
    what numbers the examples of a test file; None of others. dropped: the lines that were left out."""

    texts: list[list[str]]
    labels: np.ndarray | None
    index: list[str] | None
    dropped: list[int]


def task_of(name: str) -> Task:
    """The task of a name in `TASKS`. Raises ArgumentError for another one."""
    if name not in TASKS:
        raise ArgumentError("task", ", ".join(TASKS), repr(name))
    return TASKS[name]


def read(data: str | os.PathLike[str], name: str, part: str) -> Examples:
    """The examples of a split of a task, as GLUE's archives have them: tabs, no quotes, a byte order mark or none.

    Args:
        data: the folder that has the tasks' folders. name: of the task. part: "train", "dev" or "test"; of MNLI also
            matched and mismatched, and "diagnostic".

    Raises:
        ArgumentError: another task or split.
        InputFileError: a file that is missing, or not of this form.
    """
    task = task_of(name)
    path = Path(data, task.folder, _file(task.splits, part))
    texts = list(task.texts)
    if part in task.submission:
        table = read_table(path, [task.index, *texts], kind="tsv")
        labels, index = None, table.columns[task.index]
    else:
        wanted = [*texts, task.label]
        table = read_table(path, wanted, kind="tsv", header=task.header, drop_ragged=task.drops)
        index = None
        if task.labels is None:
            labels = columns.numbers(table, task.label)
        else:
            labels = columns.label_numbers(table, task.label, task.labels)
    # a few questions of QQP are empty
    found = [columns.texts(table, column, allow_empty=True) for column in texts]
    return Examples(found, labels, index, table.dropped)


def scores(name: str, gold: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """The metrics of a task by name; class numbers, or for STS-B scores, against each other.

    Raises:
        ArgumentError: another task, or what the metrics refuse.
    """
    return {metric: _METRICS[metric](gold, predicted) for metric in task_of(name).metrics}


def average(results: Mapping[str, Mapping[str, float]]) -> float:
    """The GLUE score: the mean over the tasks of the mean of a task's figures.

    Args:
        results: by task, its metrics as `scores` gives them; for "mnli" {"matched": ..., "mismatched": ...}. All nine
            tasks, or eight without "wnli".

    Raises:
        ArgumentError: a task or a figure is missing, or unknown.
    """
    _check_results(results)
    return float(np.mean([np.mean(list(figures.values())) for figures in results.values()]))


def paper_average(results: Mapping[str, Mapping[str, float]]) -> float:
    """The average of BERT's paper: one figure a task (F1 of QQP and MRPC, Spearman's correlation of STS-B), MNLI's
    matched and mismatched each for itself, no WNLI. results: as in `average`."""
    _check_results(results)
    figures = list(results["mnli"].values())
    figures += [results[n][t.paper] for n, t in TASKS.items() if n not in ("mnli", "wnli")]
    return float(np.mean(figures))


def write_submission(
    folder: str | os.PathLike[str], name: str, part: str, index: Sequence[str], predicted: ArrayLike
) -> Path:
    """Writes the file of predictions that GLUE's server takes, and returns its path.

    Args:
        folder: where it goes; it must exist. name, part: the task and its test split.
        index: from `read`. predicted: class numbers, or for STS-B scores, which are cut to 0 to 5; [examples].

    Raises:
        ArgumentError: another task, a split that is not submitted, not a prediction for each example, or a number of no
            class.
        OSError: the file cannot be written; what stood there stays.
    """
    task = task_of(name)
    path = Path(folder, _file(task.submission, part))
    values = np.asarray(predicted)
    if values.shape != (len(index),):
        raise ArgumentError("predicted", f"{len(index)} values", f"shape {list(values.shape)}")
    if task.labels is None:
        written = [f"{value:.3f}" for value in np.clip(values.astype(np.float64), 0, 5)]
    else:
        known = np.isin(values, np.arange(len(task.labels)))
        if not known.all():
            wrong = values[~known][0]
            raise ArgumentError("predicted", f"numbers of {len(task.labels)} classes", str(wrong))
        written = [task.labels[int(value)] for value in values]
    with atomic_write(path, "w") as handle:
        handle.write("index\tprediction\n")
        handle.writelines(f"{i}\t{text}\n" for i, text in zip(index, written, strict=True))
    return path


def _file(files: Mapping[str, str], part: str) -> str:
    if part not in files:
        raise ArgumentError("part", ", ".join(files), repr(part))
    return files[part]


def _check_results(results: Mapping[str, Mapping[str, float]]) -> None:
    expected = {name: set(task.metrics) for name, task in TASKS.items()}
    expected["mnli"] = {"matched", "mismatched"}
    lacking = expected.keys() - results.keys() - {"wnli"}
    unknown = results.keys() - expected.keys()
    if lacking or unknown:
        got = "; ".join(
            f"{word} {', '.join(sorted(names))}"
            for word, names in (("none of", lacking), ("also", unknown))
            if names
        )
        raise ArgumentError("results", "the nine tasks, or eight without wnli", got)
    for name, figures in results.items():
        if set(figures) != expected[name]:
            wanted, got = ", ".join(sorted(expected[name])), ", ".join(figures) or "none"
            raise ArgumentError(f"results[{name!r}]", wanted, got)
