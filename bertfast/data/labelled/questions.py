"""Questions about texts, whose answers are parts of these: SQuAD's json, versions 1.1 and 2.0, and tables with its
columns, as the library datasets has them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..._files import read_json
from ...errors import ArgumentError, InputFileError
from ...text.readers import kind_of
from . import columns
from .tables import Table, check_columns

MISMATCHED = ("drop", "keep")


class Answer(NamedTuple):
    """A part of a context: its text, and the character where it starts."""

    text: str
    start: int


class Question(NamedTuple):
    """answers: the gold ones; none where the context has no answer, or (of a test file) none is told."""

    id: str
    title: str
    question: str
    context: str
    answers: tuple[Answer, ...]


class Mismatch(NamedTuple):
    """An answer that is not in its context where it is said to be; `found` is what stands there."""

    id: str
    answer: Answer
    found: str

    def __str__(self) -> str:
        text, start = self.answer
        return (
            f"question {self.id}: {text!r:.60} is not at {start}, where {self.found!r:.60} stands"
        )


class Questions(NamedTuple):
    """questions: in the order of the file. mismatched: answers whose place is wrong, kept or not. dropped: the ids of
    the questions that lost all their answers by it, and were left out."""

    questions: list[Question]
    mismatched: list[Mismatch]
    dropped: list[str]


def read_squad(path: str | os.PathLike[str], mismatched: str = "drop") -> Questions:
    """The questions of a file.

    Args:
        mismatched: "drop" the answers that are not in the context where they are said to be, and the questions without
            any other, which is right for training; "keep" them, whose texts an evaluation needs.

    Raises:
        InputFileError: the file is not JSON of this form (the place in it is named), a question or context is empty,
            an id comes twice, or there is no question.
        ArgumentError: another `mismatched`.
    """
    name = os.fspath(path)
    return _checked(_questions(name), mismatched, name)


def questions_of(
    table: Table, question: str, context: str, answers: str, mismatched: str = "drop"
) -> Questions:
    """The questions of a table.

    Args:
        question, context, answers: names of columns. The answers of a row are {"text": [...], "answer_start": [...]},
            or a list of {"text": ..., "answer_start": ...}; none where the context has no answer. Columns id and title
            are read where they are; without ids the rows' numbers stand for them.
        mismatched: as in `read_squad`.

    Raises: as `read_squad`.
    """
    asked, contexts = columns.texts(table, question), columns.texts(table, context)
    check_columns(table.name, [answers], list(table.columns))
    ids = table.columns.get("id", table.numbers)
    titles = table.columns.get("title", [""] * len(table))

    def rows() -> Iterator[tuple[str, Question]]:
        for index, (i, title) in enumerate(zip(ids, titles, strict=True)):
            place = f"{table.place(index)}: {answers}"
            gold = tuple(_answers(place, table.columns[answers][index]))
            yield place, Question(str(i), str(title), asked[index], contexts[index], gold)

    return _checked(rows(), mismatched, table.name)


def _answers(place: str, value: Any) -> Iterator[Answer]:
    """Of a row of a table."""
    if isinstance(value, dict):
        sides = [_get(place, value, key, list) for key in ("text", "answer_start")]
        if len(sides[0]) != len(sides[1]):
            raise InputFileError(
                f"{place}: expected as many starts as texts, got {len(sides[1])} and {len(sides[0])}."
            )
        value = [{"text": text, "answer_start": start} for text, start in zip(*sides, strict=True)]
    for where, answer in _items(place, {"answers": value}, "answers"):
        yield Answer(_get(where, answer, "text", str), _get(where, answer, "answer_start", int))


def _checked(questions: Iterable[tuple[str, Question]], mismatched: str, name: str) -> Questions:
    """The questions (with the place of each), without the answers that are not where they should be."""
    if mismatched not in MISMATCHED:
        raise ArgumentError("mismatched", " or ".join(MISMATCHED), repr(mismatched))
    found, seen = Questions([], [], []), {}
    for place, question in questions:
        if question.id in seen:
            raise InputFileError(
                f"{place}.id: expected an id of its own, got {question.id!r} of {seen[question.id]}, too."
            )
        seen[question.id] = place
        wrong = [m for answer in question.answers if (m := _mismatch(question, answer))]
        found.mismatched.extend(wrong)
        if wrong and mismatched == "drop":
            bad = [m.answer for m in wrong]
            kept = tuple(answer for answer in question.answers if answer not in bad)
            if not kept:
                found.dropped.append(question.id)
                continue
            question = question._replace(answers=kept)
        found.questions.append(question)
    if not found.questions:
        lost = f", as {len(found.dropped)} lost their answers" if found.dropped else ""
        raise InputFileError(f"{name}: expected questions, got none{lost}.")
    return found


def _mismatch(question: Question, answer: Answer) -> Mismatch | None:
    text, start = answer
    there = question.context[start : start + len(text)] if start >= 0 else ""
    # an empty answer is at no place
    return None if text and there == text else Mismatch(question.id, answer, there)


def _questions(name: str) -> Iterator[tuple[str, Question]]:
    """(place, question) of each."""
    for place, article in _items(name, read_json(Path(name), InputFileError), "data"):
        title = _get(place, article, "title", str, "")
        for where, paragraph in _items(place, article, "paragraphs"):
            context = _text(where, paragraph, "context")
            for here, item in _items(where, paragraph, "qas"):
                yield here, _question(here, item, title, context)


def _question(place: str, item: dict[str, Any], title: str, context: str) -> Question:
    answers = []
    # of a question without an answer, version 2.0 has plausible ones elsewhere
    if not _get(place, item, "is_impossible", bool, False):
        for where, answer in _items(place, item, "answers", []):
            start = _get(where, answer, "answer_start", int)
            answers.append(Answer(_get(where, answer, "text", str), start))
    return Question(
        _text(place, item, "id"), title, _text(place, item, "question"), context, tuple(answers)
    )


def _items(
    place: str, record: dict[str, Any], key: str, default: Any = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, item in enumerate(_get(place, record, key, list, default)):
        where = f"{_join(place, key)}[{index}]"
        if not isinstance(item, dict):
            raise InputFileError(f"{where}: expected an object, got {kind_of(item)}.")
        yield where, item


def _text(place: str, record: dict[str, Any], key: str) -> str:
    text = _get(place, record, key, str)
    if not text.strip():
        raise InputFileError(f"{_join(place, key)}: expected a text, got an empty one.")
    return text


def _get(place: str, record: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = record.get(key, default)
    if value is None:
        there = ", ".join(record) or "nothing"
        raise InputFileError(f"{_join(place, key)}: expected {kind.__name__}, got only {there}.")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputFileError(
            f"{_join(place, key)}: expected {kind.__name__}, got {kind_of(value)}."
        )
    return value


def _join(place: str, key: str) -> str:
    """file: data[3].paragraphs[0].context"""
    return f"{place}.{key}" if place.endswith("]") else f"{place}: {key}"
