"""Metrics of classes, numbers and probabilities beside scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sklearn

from bertfast.errors import ArgumentError
from bertfast.tasks import metrics
from bertfast.tasks.intervals import wilson
from harness import seeds

ROUNDING = 64 * np.finfo(np.float64).eps  # of a few sums of some hundred terms


def near(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= ROUNDING


@pytest.fixture
def generator():
    return np.random.default_rng(seeds.seed())


@pytest.mark.parametrize("classes", [2, 5])
def test_classes(classes, generator):
    for _ in range(10):
        gold = generator.integers(0, classes, 200)
        predicted = np.where(generator.random(200) < 0.6, gold, generator.integers(0, classes, 200))
        assert near(metrics.accuracy(gold, predicted), sklearn.accuracy_score(gold, predicted))
        assert near(metrics.matthews(gold, predicted), sklearn.matthews_corrcoef(gold, predicted))
        macro = sklearn.f1_score(gold, predicted, average="macro")
        assert near(metrics.macro_f1(gold, predicted), macro)
        one = sklearn.f1_score(gold == 1, predicted == 1)
        assert near(metrics.f1(gold, predicted), one)
        np.testing.assert_array_equal(
            metrics.confusion_matrix(gold, predicted, classes),
            sklearn.confusion_matrix(gold, predicted),
        )


def test_classes_at_the_edges():
    assert metrics.confusion_matrix([0, 1, 1], [1, 1, 0], 3).tolist() == [
        [0, 1, 0],
        [1, 1, 0],
        [0, 0, 0],
    ]
    assert metrics.f1([0, 0], [0, 0]) == 0
    assert metrics.macro_f1([0, 0, 2], [0, 0, 0]) == 0.4  # class 1 does not count
    assert metrics.matthews([1, 1, 1], [1, 0, 1]) == 0
    assert metrics.matthews([0, 1], [1, 0]) == -1
    half = 3_000_000  # whose products need more than 64 bits
    many = np.repeat([0, 1], half)
    assert metrics.matthews(many, many) == 1


def test_several_labels_are_flattened(generator):
    gold, predicted = generator.random((2, 50, 4)) < 0.4
    micro = sklearn.f1_score(gold, predicted, average="micro")
    assert near(metrics.f1(gold.ravel(), predicted.ravel()), micro)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations(name, generator):
    theirs = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}[name]
    for levels in (3, 1000):  # many ties, few
        gold = generator.integers(0, levels, 300).astype(float)
        predicted = np.round(gold + generator.normal(size=300) * levels / 3)
        ours = getattr(metrics, name)(gold, predicted)
        assert near(ours, theirs(gold, predicted).statistic)
        assert near(getattr(metrics, name)(gold * 1e200, predicted), ours)
    assert getattr(metrics, name)([1, 2, 3], [0.1, 0.1, 0.1]) == 0
    assert near(getattr(metrics, name)([1, 2, 3], [3, 2, 1]), -1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy([], []), "gold: expected at least one value, got none"),
        (lambda: metrics.accuracy([1, 2], [1]), "as many values as gold ones, got 2 and 1"),
        (lambda: metrics.accuracy([0.5], [1]), "gold: expected a row of class numbers, from 0"),
        (lambda: metrics.f1([0, -1], [1, 1]), "the least -1"),
        (lambda: metrics.confusion_matrix([0, 2], [0, 0], 2), "gold: expected numbers of 2"),
        (lambda: metrics.pearson([0, 1], [np.nan, 0]), r"predicted\[0\]: expected a finite"),
        (lambda: metrics.temperature([[1.0, 2]], [2]), "gold: expected numbers of 2 classes"),
        (lambda: metrics.temperature([[np.inf, 2]], [1]), "logits: expected finite numbers"),
        (lambda: metrics.expected_calibration_error([1.5], [True]), "confidence: expected"),
        (lambda: wilson(3, 2), "right: expected 0 to 2, got 3"),
        (lambda: wilson(0, 0), "count: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_temperature(generator):
    """Labels drawn from the softmax of logits / 2.5: the least loss is found, and it is near there."""
    logits = generator.normal(size=(4000, 4)) * 5
    chances = metrics.probabilities(logits, 2.5)
    gold = (chances.cumsum(axis=1) < generator.random((4000, 1))).sum(axis=1)

    def loss(value):
        return -np.log(metrics.probabilities(logits, value)[np.arange(4000), gold]).mean()

    found = metrics.temperature(logits, gold)
    assert 2.2 < found < 2.8  # five standard errors are 0.3
    assert loss(found) < min(loss(found * 1.001), loss(found / 1.001))
    right = chances.argmax(axis=1) == gold
    before = metrics.expected_calibration_error(metrics.probabilities(logits).max(axis=1), right)
    after = metrics.expected_calibration_error(chances.max(axis=1), right)
    assert after < 0.05 < before
    all_right = metrics.temperature(logits, logits.argmax(axis=1))
    all_wrong = metrics.temperature(logits, logits.argmin(axis=1))
    assert near(all_right, 1 / 32)
    assert abs(all_wrong - 32) < 1e-9  # where the halving ends


def test_calibration_error_by_hand():
    """Edges belong to the bin below: {0.1, 0.5} and {0.6, 1.0} of two bins."""
    found = metrics.expected_calibration_error([0.1, 0.5, 0.6, 1.0], [0, 1, 1, 1], bins=2)
    assert near(found, (abs(0.6 - 1) + abs(1.6 - 2)) / 4)
    assert metrics.expected_calibration_error([0.0], [False]) == 0


def test_wilson():
    """Its ends are where the share is z standard errors away."""
    for right, count in ((7, 10), (1, 300), (299, 300)):
        for end in wilson(right, count):
            error = (end * (1 - end) / count) ** 0.5
            assert abs(abs(right / count - end) / error - 1.96) < 1e-9
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1
    assert 0 < wilson(5, 5)[0] < 1
