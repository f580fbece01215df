"""What BERT's authors and others have published, as figures that a run is set beside.

All are in percent unless a row says otherwise. The paper is Devlin et al., "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", 2019 (arXiv 1810.04805, version 2), whose tables and sections are named.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._table import table

NAMES = ("squad", "glue", "mnli", "swag", "ner", "nsp", "params")
BASE, LARGE, HUMAN = "BERT-base", "BERT-large", "human"

_WIDTH = 100
Figure = float | tuple[float, float]  # a tuple: from, to


class Row(NamedTuple):
    """The figures of one system.

    Fields:
        system: whose they are. split: of the data they were measured on; "" where there is none.
        figures: by metric; those that were not published are not there. A whole number is a count.
        source: where they are published; "" of ours.
    """

    system: str
    split: str
    figures: Mapping[str, Figure]
    source: str


class Board(NamedTuple):
    """Figures of one set of data. metrics: their names, in order. notes: what a reader has to know."""

    title: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def beside(self, rows: Sequence[Row]) -> Board:
        """This board with further rows, which come first."""
        return self._replace(rows=(*rows, *self.rows))

    def as_text(self) -> str:
        """As a table: a line for each system or, of many metrics, for each metric."""
        cells = [("", "split", *self.metrics)]
        for row in self.rows:
            values = [_shown(row.figures.get(metric)) for metric in self.metrics]
            cells.append((row.system, row.split, *values))
        if len(self.metrics) > 4:
            cells = list(zip(*cells, strict=True))
        elif not any(row.split for row in self.rows):
            cells = [(system, *values) for system, _, *values in cells]
        body = table(cells, right=range(1, len(cells[0])))
        wrap = textwrap.TextWrapper(_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        said = [wrap.fill(f"- {note}") for note in self.notes]
        return "\n".join([self.title, body, *self._sources(), *said])

    def _sources(self) -> list[str]:
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.source:
                found.setdefault(row.source, []).append(f"{row.system} {row.split}".strip())
        if len(found) == 1:
            return [f"  published in: {source}" for source in found]
        return [f"  {'; '.join(whose)}: {source}" for source, whose in found.items()]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        rows = [{**row._asdict(), "figures": dict(row.figures)} for row in self.rows]
        return {**self._asdict(), "rows": rows}


def _shown(value: Figure | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:g} to {value[1]:g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


_EXACT, _F1 = ("exact match", "F1")


def _answers(system: str, split: str, exact: float, f1: float, number: int) -> Row:
    return Row(system, split, {_EXACT: exact, _F1: f1}, f"the paper, table {number}")


SQUAD = {
    "v1.1": Board(
        "SQuAD 1.1",
        (_EXACT, _F1),
        (
            _answers(f"{BASE}, one model", "dev", 80.8, 88.5, 2),
            _answers(f"{LARGE}, one model", "dev", 84.1, 90.9, 2),
            _answers(f"{LARGE}, ensemble", "dev", 85.8, 91.8, 2),
            _answers(f"{LARGE}, one model, TriviaQA", "dev", 84.2, 91.1, 2),
            _answers(f"{LARGE}, one model, TriviaQA", "test", 85.1, 91.8, 2),
            _answers(f"{LARGE}, ensemble, TriviaQA", "dev", 86.2, 92.2, 2),
            _answers(f"{LARGE}, ensemble, TriviaQA", "test", 87.4, 93.2, 2),
            _answers(HUMAN, "test", 82.3, 91.2, 2),
        ),
        (
            '"Above humans on both metrics" is said of the test set (82.3 and 91.2), and holds there for BERT-large '
            "that was trained on TriviaQA first: an ensemble of 7 (87.4 and 93.2), and one model (85.1 and 91.8).",
            "One model without TriviaQA was measured on dev alone: beside that human score BERT-large is above in "
            "exact match only, BERT-base in neither.",
            "The test set is not public; what is measured here is dev.",
        ),
    ),
    "v2.0": Board(
        "SQuAD 2.0",
        (_EXACT, _F1),
        (
            _answers(f"{LARGE}, one model", "dev", 78.7, 81.9, 3),
            _answers(f"{LARGE}, one model", "test", 80.0, 83.1, 3),
            _answers(HUMAN, "dev", 86.3, 89.0, 3),
            _answers(HUMAN, "test", 86.9, 89.5, 3),
        ),
        (
            "The paper has no figure of BERT-base here.",
            "The threshold of no answer is tuned on dev for F1, in the paper as here.",
        ),
    ),
}

AVERAGE, SCORE = "average of the paper", "GLUE score"
_NANGIA = "Nangia and Bowman, 2019, and the leaderboard; annotators who are no experts"
_TABLE_1 = {
    "mnli matched": (84.6, 86.7),
    "mnli mismatched": (83.4, 85.9),
    "qqp f1": (71.2, 72.1),
    "qnli accuracy": (90.5, 92.7),
    "sst2 accuracy": (93.5, 94.9),
    "cola matthews": (52.1, 60.5),
    "stsb spearman": (85.8, 86.5),
    "mrpc f1": (88.9, 89.3),
    "rte accuracy": (66.4, 70.1),
    AVERAGE: (79.6, 82.1),
}
# second metrics, WNLI and the score are the leaderboard's alone
_LEADERBOARD = {
    "qqp accuracy": 89.3,
    "stsb pearson": 87.6,
    "mrpc accuracy": 85.4,
    "wnli accuracy": 65.1,
    SCORE: 80.5,
}
_HUMANS = {
    "mnli matched": 92.0,
    "mnli mismatched": 92.8,
    "qqp f1": 59.5,
    "qqp accuracy": 80.4,
    "qnli accuracy": 91.2,
    "sst2 accuracy": 97.8,
    "cola matthews": 66.4,
    "stsb pearson": 92.7,
    "stsb spearman": 92.6,
    "mrpc f1": 86.3,
    "mrpc accuracy": 80.8,
    "rte accuracy": 93.6,
    "wnli accuracy": 95.9,
    SCORE: 87.1,
}
_TABLE_5 = {
    "mnli matched": 84.4,
    "qnli accuracy": 88.4,
    "mrpc accuracy": 86.7,
    "sst2 accuracy": 92.7,
}
_TABLE_6 = {"mnli matched": 86.6, "mrpc accuracy": 87.8, "sst2 accuracy": 93.7}

GLUE = Board(
    "GLUE",
    (*tuple(_HUMANS)[:-1], AVERAGE, SCORE),
    (
        Row(BASE, "dev", _TABLE_5, "the paper, table 5"),
        Row(LARGE, "dev", _TABLE_6, "the paper, table 6; mean of 5 runs"),
        Row(BASE, "test", {k: v[0] for k, v in _TABLE_1.items()}, "the paper, table 1"),
        Row(
            LARGE,
            "test",
            {**{k: v[1] for k, v in _TABLE_1.items()}, **_LEADERBOARD},
            "the paper, table 1; second metrics, WNLI and score: the leaderboard",
        ),
        Row(HUMAN, "test", _HUMANS, _NANGIA),
    ),
    (
        "80.5 is the leaderboard's score of BERT-large in the paper's second version (2019), 80.4 that of its first "
        "(October 2018): over all nine tasks, two metrics of a task averaged first.",
        "82.1 (BERT-large) and 79.6 (BERT-base) are the averages of table 1: one figure a task, MNLI's two parts each "
        "for itself, no WNLI.",
        "Test labels are not public: ours are of dev, and the files of predictions for the leaderboard's server lie in "
        "submission/. dev and test are not to be compared to the last point.",
    ),
)

MNLI = Board(
    "MultiNLI",
    ("mnli matched", "mnli mismatched"),
    tuple(
        row._replace(
            figures={k: v for k, v in row.figures.items() if k.startswith("mnli")},
            source=row.source.partition("; second")[0],
        )
        for row in GLUE.rows
    ),
    (
        "86.7 is BERT-large on the matched test set.",
        "Test labels are not public: ours are of dev, and the files of predictions lie in submission/.",
    ),
)

SWAG = Board(
    "SWAG",
    ("accuracy",),
    (
        Row(BASE, "dev", {"accuracy": 81.6}, "the paper, table 4"),
        Row(LARGE, "dev", {"accuracy": 86.6}, "the paper, table 4"),
        Row(LARGE, "test", {"accuracy": 86.3}, "the paper, table 4"),
        Row("human, an expert", "test", {"accuracy": 85.0}, "the paper, table 4"),
        Row("human, 5 annotations", "test", {"accuracy": 88.0}, "the paper, table 4"),
    ),
    (
        "The human scores are of 100 examples. Test labels are not public; ours are of dev (val.csv).",
    ),
)

NER = Board(
    "CoNLL-2003, entities",
    (_F1,),
    (
        Row(BASE, "dev", {_F1: 96.4}, "the paper, table 7; mean of 5 runs"),
        Row(BASE, "test", {_F1: 92.4}, "the paper, table 7; mean of 5 runs"),
        Row(LARGE, "dev", {_F1: 96.6}, "the paper, table 7; mean of 5 runs"),
        Row(LARGE, "test", {_F1: 92.8}, "the paper, table 7; mean of 5 runs"),
    ),
    (
        "F1 as conlleval counts it. The paper has no human score.",
        "The paper's model is cased and sees as much of the document around a sentence as fits; here a sentence is "
        "read alone, so expect less.",
    ),
)

NSP = Board(
    "Next sentences",
    ("accuracy",),
    (Row("BERT", "", {"accuracy": (97.0, 98.0)}, "the paper, section 3.1, a footnote"),),
    (
        'The paper tells of its "final model", not which one, nor on which pairs: half have a second side that '
        "follows, the others a random one from the corpus. Easy pairs are the nearest to that.",
        "Ours: IsNext in exactly half; a second side that does not follow is from another document (easy) or from "
        "elsewhere in the same one (hard). Pairs are of the store's documents.",
        "There is no human score.",
    ),
)

_SIZES = ("layers", "hidden size", "heads", "parameters")


def sized(system: str, sizes: Sequence[int], source: str) -> Row:
    """A row of layers, hidden size, heads and parameters."""
    return Row(system, "", dict(zip(_SIZES, sizes, strict=True)), source)


PARAMETERS = Board(
    "Size",
    _SIZES,
    (
        sized(BASE, (12, 768, 12, 110_000_000), "the paper, section 3"),
        sized(LARGE, (24, 1024, 16, 340_000_000), "the paper, section 3"),
        sized(
            f"{BASE}, retold",
            (12, 768, 12, 115_000_000),
            'Chinese articles, as "110M, about 1.15亿"',
        ),
    ),
)
