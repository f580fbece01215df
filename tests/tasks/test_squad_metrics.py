"""Exact match and F1 of answers, by hand, and the threshold of null answers by trying all."""

from __future__ import annotations

import numpy as np
import pytest

from bertfast.errors import ArgumentError
from bertfast.tasks.metrics.squad import (
    answer_scores,
    best_threshold,
    exact_match,
    f1,
    normalize,
    with_null,
)
from harness import seeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, an\tA-hat!", "cat ahat"),
        ("another theatre", "another theatre"),
        ("the", ""),
        ("U.S.A.", "usa"),  # punctuation goes before articles
        ("a.n.", ""),
        ("ÉCOLE «the» “Ω”", "école « » “ω”"),  # punctuation outside ASCII stays
        ("an\u00a0hour\u3000ago", "hour ago"),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我的狗。", "我 的 狗"),
        ("《BERT》 模型v2,", "bert 模 型 v2"),
        ("The 年", "the 年"),  # no articles
        ("！？", ""),
    ],
)
def test_normalize_chinese(text, expected):
    assert normalize(text, "zh") == expected


@pytest.mark.parametrize(
    ("golds", "predicted", "exact", "score"),
    [
        (["the cat"], "Cat.", 1, 1),
        (["cat", "black cat"], "a black cat", 1, 1),
        (["black cat sat"], "cat sat down", 0, 2 / 3),
        (["b b c"], "b b b", 0, 2 / 3),  # as often as both have it
        ([], "", 1, 1),
        ([], "cat", 0, 0),
        (["cat"], "", 0, 0),
        (["cat"], "the", 0, 0),
        (["the", "cat"], "", 0, 0),  # an empty gold answer does not count beside another
        (["the"], "", 1, 1),
    ],
)
def test_one_answer(golds, predicted, exact, score):
    assert exact_match(golds, predicted) == exact
    assert f1(golds, predicted) == score


def test_chinese_by_characters():
    assert f1(["北京大学"], "北京大", "zh") == 6 / 7
    assert f1(["北京大学"], "北京大") == 0
    assert exact_match(["北京，大学"], "北京大学。", "zh") == 1


def test_means():
    golds = {"1": ["a cat"], "2": ["dog house"], "3": []}
    found = answer_scores(golds, {"3": "", "2": "dog", "1": "cat"})
    assert found == ((2 / 3), (1 + 2 / 3 + 1) / 3, 3, (0.5, (1 + 2 / 3) / 2, 2), (1, 1, 1))
    assert answer_scores({"1": ["cat"]}, {"1": "cat"}).null is None


@pytest.mark.parametrize("metric", ["exact", "f1"])
def test_threshold_is_the_best(metric):
    """No threshold gives more than the one found, and it gives what it says; equal null scores among them."""
    generator = np.random.default_rng(seeds.seed())
    words = ["red", "green", "blue fish", "the"]
    for _ in range(20):
        ids = [str(number) for number in range(12)]
        golds = {i: list(generator.choice(words, generator.integers(0, 3))) for i in ids}
        predicted = {i: str(generator.choice([*words, ""])) for i in ids}
        null = {i: float(generator.integers(-3, 4)) for i in ids}

        def value(threshold, golds=golds, predicted=predicted, null=null):
            found = answer_scores(golds, with_null(predicted, null, threshold))
            return found.exact if metric == "exact" else found.f1

        found = best_threshold(golds, predicted, null, metric)
        tried = max(value(threshold) for threshold in (-4.0, *null.values()))
        assert abs(value(found.threshold) - found.score) < 1e-12
        assert abs(tried - found.score) < 1e-12


def test_all_null():
    found = best_threshold({"1": [], "2": []}, {"1": "x", "2": "y"}, {"1": -5.0, "2": 3.0})
    assert found.score == 1
    assert -5.1 < found.threshold < -5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalize("x", "de"), "language: expected en or zh, got 'de'"),
        (lambda: answer_scores({}, {}), "golds: expected at least one question"),
        (lambda: answer_scores({"a": [], "b": []}, {"a": ""}), "1 lacking and 0 too many.*b"),
        (lambda: answer_scores({"a": []}, {"a": "", "c": ""}), "0 lacking and 1 too many.*c"),
        (lambda: best_threshold({"a": []}, {"a": ""}, {}), "null_scores: expected the ids"),
        (lambda: best_threshold({"a": []}, {"a": ""}, {"a": 0.0}, "em"), "metric: expected exact"),
        (
            lambda: best_threshold({"a": []}, {"a": ""}, {"a": float("nan")}),
            "null_scores: expected numbers, got NaN",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
