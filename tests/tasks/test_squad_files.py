"""SQuAD's json: both versions, answers that are not where they are said to be, and broken files."""

from __future__ import annotations

import copy
import json

import pytest

from bertfast.data.labelled.questions import Answer, Question, questions_of, read_squad
from bertfast.data.labelled.tables import read_table
from bertfast.errors import ArgumentError, InputFileError

CONTEXT = "Ülo lives in Tartu."
PLAIN = {
    "version": "v2.0",
    "data": [
        {
            "title": "Ülo",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "a",
                            "question": "Where?",
                            "answers": [
                                {"text": "Tartu", "answer_start": 13},
                                {"text": "in Tartu", "answer_start": 10},
                            ],
                        },
                        {
                            "id": "b",
                            "question": "When?",
                            "answers": [],
                            "plausible_answers": [{"text": "Tartu", "answer_start": 13}],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        }
    ],
}


def read(folder, data, **options):
    path = folder / "a.json"
    path.write_text(json.dumps(data))
    return read_squad(path, **options)


def changed(change):
    """PLAIN after `change(paragraph)`."""
    data = copy.deepcopy(PLAIN)
    change(data["data"][0]["paragraphs"][0])
    return data


def test_both_kinds_of_questions(tmp_path):
    found = read(tmp_path, PLAIN)
    first, second = found.questions
    assert first == ("a", "Ülo", "Where?", CONTEXT, (Answer("Tartu", 13), Answer("in Tartu", 10)))
    assert second.answers == ()
    assert (found.mismatched, found.dropped) == ([], [])


def place(question, answer, **values):
    return lambda paragraph: paragraph["qas"][question]["answers"][answer].update(values)


def test_one_answer_at_another_place(tmp_path):
    data = changed(place(0, 1, answer_start=11))
    found = read(tmp_path, data)
    assert found.questions[0].answers == (Answer("Tartu", 13),)
    (wrong,) = found.mismatched
    assert str(wrong) == "question a: 'in Tartu' is not at 11, where 'n Tartu.' stands"
    assert found.dropped == []
    kept = read(tmp_path, data, mismatched="keep")
    assert kept.questions[0].answers[1] == Answer("in Tartu", 11)
    assert kept.mismatched == found.mismatched


@pytest.mark.parametrize(("text", "start"), [("Tartu", -6), ("Tartu", 99), ("", 3), ("tartu", 13)])
def test_no_answer_left(text, start, tmp_path):
    """A start below 0 counts from no end, and an empty answer is nowhere."""

    def change(paragraph):
        paragraph["qas"][0]["answers"] = [{"text": text, "answer_start": start}]

    found = read(tmp_path, changed(change))
    assert [question.id for question in found.questions] == ["b"]
    assert found.dropped == ["a"]
    assert len(found.mismatched) == 1


QAS = r"a\.json: data\[0\]\.paragraphs\[0\]\.qas\[1\]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["qas"][1].update(id="a"), rf"{QAS}\.id: expected an id of its own, got 'a'"),
        (lambda p: p["qas"][1].update(question=" "), rf"{QAS}\.question: expected a text, got an"),
        (lambda p: p["qas"][1].pop("question"), rf"{QAS}\.question: .* got only id, answers"),
        (lambda p: p["qas"].__setitem__(1, 3), rf"{QAS}: expected an object, got int"),
        (lambda p: p["qas"][1].update(id=3), rf"{QAS}\.id: expected str, got int"),
        (lambda p: p.update(context=""), r"paragraphs\[0\]\.context: expected a text, got an em"),
        (lambda p: p.update(qas={}), r"paragraphs\[0\]\.qas: expected list, got dict"),
        (lambda p: p.update(qas=[]), r"a\.json: expected questions, got none"),
        (place(0, 0, answer_start="13"), r"qas\[0\]\.answers\[0\]\.answer_start: expected int"),
        (place(0, 0, answer_start=True), r"answers\[0\]\.answer_start: expected int, got bool"),
        (place(0, 0, text=None), r"answers\[0\]\.text: expected str"),
    ],
)
def test_broken_files(change, message, tmp_path):
    with pytest.raises(InputFileError, match=message):
        read(tmp_path, changed(change))


def test_other_files(tmp_path):
    with pytest.raises(InputFileError, match=r"a\.json: data: expected list, got only rows"):
        read(tmp_path, {"rows": []})
    with pytest.raises(InputFileError, match="expected a file, got nothing there"):
        read_squad(tmp_path / "b.json")
    with pytest.raises(ArgumentError, match="mismatched: expected drop or keep"):
        read(tmp_path, PLAIN, mismatched="fix")


@pytest.mark.parametrize("listed", [True, False])
def test_a_table_has_what_the_json_has(tmp_path, listed):
    """As the library datasets has SQuAD's answers, or as a list of them; ids and titles where they are."""
    path = tmp_path / "a.jsonl"
    answers = [{"text": "Rome", "answer_start": 3}, {"text": "Roma", "answer_start": 3}]
    if not listed:
        answers = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
    row = {"question": "where", "context": "to Rome", "answers": answers}
    rows = [{**row, "id": "x", "title": "t"}, {**row, "id": "y", "title": "t", "answers": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(path)
    found = questions_of(table, "question", "context", "answers")
    first, second = found.questions
    assert first == Question("x", "t", "where", "to Rome", (Answer("Rome", 3),))
    assert second.answers == ()
    assert [m.found for m in found.mismatched] == ["Rome"]
    kept = questions_of(table, "question", "context", "answers", "keep")
    assert len(kept.questions[0].answers) == 2
