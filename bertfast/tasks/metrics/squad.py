"""Exact match and F1 of answers, as SQuAD's script (evaluate-v2.0) counts them, which for questions that all have an
answer is what version 1.1's counts; Chinese by characters, as MLQA's does."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ...errors import ArgumentError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = re.compile(r"([\u4e00-\u9fa5])")
LANGUAGES = ("en", "zh")


class AnswerScores(NamedTuple):
    """exact, f1: from 0 to 1. count: questions. answered, null: the same of those with and without an answer,
    (exact, f1, count), None where there is none."""

    exact: float
    f1: float
    count: int
    answered: tuple[float, float, int] | None
    null: tuple[float, float, int] | None


class Threshold(NamedTuple):
    """A question gets no answer where its null score is above `threshold`; `score` is what this gives, 0 to 1."""

    threshold: float
    score: float


def normalize(text: str, language: str = "en") -> str:
    """What of an answer is compared.

    English: lower case; ASCII punctuation, then the words a, an, the are dropped; one blank between words. Chinese:
    lower case; all punctuation is dropped; each character between U+4E00 and U+9FA5 is a word.

    Raises:
        ArgumentError: another language.
    """
    if language == "zh":
        kept = "".join(char for char in text.lower() if not _is_punctuation(char))
        return " ".join(_CHINESE.sub(r" \1 ", kept).split())
    if language != "en":
        raise ArgumentError("language", " or ".join(LANGUAGES), repr(language))
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(golds: Sequence[str], predicted: str, language: str = "en") -> int:
    """1 if the prediction equals one of the gold answers, normalized. golds: as in `f1`."""
    answer = normalize(predicted, language)
    return int(any(normalize(gold, language) == answer for gold in _golds(golds, language)))


def f1(golds: Sequence[str], predicted: str, language: str = "en") -> float:
    """The best F1 of words that a prediction has with one of the gold answers, 0 to 1.

    Args:
        golds: the answers; none, or only empty ones: the right prediction is "".
    """
    answer = normalize(predicted, language).split()
    return max(
        _overlap(normalize(gold, language).split(), answer) for gold in _golds(golds, language)
    )


def answer_scores(
    golds: Mapping[str, Sequence[str]], predicted: Mapping[str, str], language: str = "en"
) -> AnswerScores:
    """Mean exact match and F1 of predicted answers, "" for none.

    Args:
        golds: by the question's id, its gold answers; none where it has no answer.
        predicted: by the id, the answer.

    Raises:
        ArgumentError: no questions, or ids that are not the same in both.
    """
    _check_ids(golds, predicted)
    rows = np.array(
        [
            (exact_match(golds[i], predicted[i], language), f1(golds[i], predicted[i], language))
            for i in golds
        ]
    )
    answered = np.array([bool(golds[i]) for i in golds])
    exact, mean = rows.mean(axis=0).tolist()
    return AnswerScores(exact, mean, len(rows), _part(rows[answered]), _part(rows[~answered]))


def with_null(
    predicted: Mapping[str, str], null_scores: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """The answers, "" where the question's null score is above the threshold."""
    return {i: "" if null_scores[i] > threshold else text for i, text in predicted.items()}


def best_threshold(
    golds: Mapping[str, Sequence[str]],
    predicted: Mapping[str, str],
    null_scores: Mapping[str, float],
    metric: str = "f1",
    language: str = "en",
) -> Threshold:
    """The threshold of null scores that gives the best mean of a metric.

    The official search: begin with no answer anywhere, then let in the answers by rising null score, and keep the first
    best place. Other than the script, questions of equal null score are let in together, so that the threshold gives
    the score that is returned; and where no answer anywhere is best, the threshold is below all null scores.

    Args:
        golds, predicted: as in `answer_scores`; predicted has the best answer of each question, as if none were null.
        null_scores: by the id, how much speaks for no answer.
        metric: "exact" or "f1".

    Raises:
        ArgumentError: another metric; no questions; ids that are not the same in all three; a score that is NaN.
    """
    measures = {"exact": exact_match, "f1": f1}
    if metric not in measures:
        raise ArgumentError("metric", " or ".join(measures), repr(metric))
    _check_ids(golds, predicted)
    _check_ids(golds, null_scores, "null_scores")
    scores = np.array([null_scores[i] for i in golds], dtype=np.float64)
    if np.isnan(scores).any():
        raise ArgumentError("null_scores", "numbers", "NaN")
    answered = np.array([measures[metric](golds[i], predicted[i], language) for i in golds])
    silent = np.array([measures[metric](golds[i], "", language) for i in golds])
    order = np.argsort(scores, kind="stable")
    means = (silent.sum() + np.cumsum((answered - silent)[order])) / len(scores)
    ends = np.append(np.diff(scores[order]) > 0, True)  # the last of equal null scores
    means[~ends] = -np.inf
    best = int(np.argmax(means))
    if silent.mean() >= means[best]:
        return Threshold(float(np.nextafter(scores.min(), -np.inf)), float(silent.mean()))
    return Threshold(float(scores[order[best]]), float(means[best]))


def _overlap(gold: list[str], answer: list[str]) -> float:
    if not gold or not answer:
        return float(gold == answer)
    common = (Counter(gold) & Counter(answer)).total()
    return 2 * common / (len(gold) + len(answer))


def _golds(golds: Sequence[str], language: str) -> Sequence[str]:
    return [gold for gold in golds if normalize(gold, language)] or [""]


def _part(rows: np.ndarray) -> tuple[float, float, int] | None:
    return (*rows.mean(axis=0).tolist(), len(rows)) if len(rows) else None


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def _check_ids(
    golds: Mapping[str, object], other: Mapping[str, object], name: str = "predicted"
) -> None:
    if not golds:
        raise ArgumentError("golds", "at least one question", "none")
    if golds.keys() != other.keys():
        lacking, extra = golds.keys() - other.keys(), other.keys() - golds.keys()
        shown = ", ".join(sorted(lacking or extra)[:3])
        got = f"{len(lacking)} lacking and {len(extra)} too many, such as {shown}"
        raise ArgumentError(name, f"the ids of the {len(golds)} questions", got)
