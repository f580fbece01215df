"""Published figures: that they agree with each other, and what the parameters of BERT are counted as."""

from __future__ import annotations

import pytest

from bertfast.tasks import glue, parameters, published
from bertfast.tasks.published import Board, Row


def by_task(row: Row) -> dict[str, dict[str, float]]:
    """The figures of GLUE's tasks as `glue.average` takes them."""
    found: dict[str, dict[str, float]] = {}
    for name, value in row.figures.items():
        if name not in (published.AVERAGE, published.SCORE):
            task, metric = name.split()
            found.setdefault(task, {})[metric] = value
    return found


def test_scores_of_glue():
    """80.5, 82.1 and 87.1 are the averages of the figures beside them; 79.6 is that of table 1."""
    *_, base, large, human = published.GLUE.rows
    assert round(glue.average(by_task(large)), 1) == large.figures[published.SCORE] == 80.5
    assert round(glue.paper_average(by_task(large)), 1) == large.figures[published.AVERAGE] == 82.1
    assert abs(glue.average(by_task(human)) - human.figures[published.SCORE]) < 0.1
    nine = [value for name, value in base.figures.items() if name != published.AVERAGE]
    assert len(nine) == 9
    assert round(sum(nine) / 9, 1) == base.figures[published.AVERAGE] == 79.6


def test_above_humans():
    """As the notes of SQuAD 1.1 say."""
    rows = {(row.system, row.split): row.figures for row in published.SQUAD["v1.1"].rows}
    human = rows.pop(("human", "test"))
    above = {
        key: tuple(figures[name] > human[name] for name in ("exact match", "F1"))
        for key, figures in rows.items()
    }
    assert {above["BERT-large, one model, TriviaQA", "test"]} == {(True, True)}
    assert {above["BERT-large, ensemble, TriviaQA", "test"]} == {(True, True)}
    assert above["BERT-large, one model", "dev"] == (True, False)
    assert above["BERT-base, one model", "dev"] == (False, False)


@pytest.mark.parametrize(
    ("shape", "encoder", "total"),
    [
        ((12, 768, 12), 109_482_240, 110_106_428),
        ((24, 1024, 16), 335_141_888, 336_226_108),
    ],
)
def test_parameters(shape, encoder, total):
    """As `BertModel` and `BertForPreTraining` of the published uncased checkpoints have them."""
    found = parameters.of_shape(*shape, parameters.UNCASED)
    assert (found.encoder, found.total) == (encoder, total)
    assert round(encoder / 1e6) != 115 != round(total / 1e6)


def test_explanation():
    said = " ".join(parameters.explanation())
    for number in ("109,482,240", "110,106,428", "115,343,360", "133,547,324"):
        assert number in said
    words = int(said.partition("would need ")[2].split()[0].replace(",", ""))
    assert round(parameters.of_shape(12, 768, 12, words).encoder / 1e6) == 115


def test_a_board():
    rows = (Row("a", "dev", {"x": 1.25}, "there"), Row("b", "test", {"x": (2.0, 3.0), "y": 4}, ""))
    board = Board("Title", ("x", "y"), rows, ("a note",))
    lines = board.beside([Row("ours", "dev", {"y": 1000}, "")]).as_text().splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["split", "x", "y"],
        ["ours", "dev", "-", "1,000"],
        ["a", "dev", "1.2", "-"],
    ]
    assert lines[4].split() == ["b", "test", "2", "to", "3", "4"]
    assert lines[5:] == ["  published in: there", "- a note"]
    assert board.as_dict()["rows"][0]["figures"] == {"x": 1.25}
