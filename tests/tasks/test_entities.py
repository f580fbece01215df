"""Entities beside seqeval, in both readings, on all short tag sequences and on drawn ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Tokens

from bertfast.errors import ArgumentError
from bertfast.tasks.metrics import entity_scores, spans, tags_of
from harness import seeds

TAGS = ("O", "B-a", "I-a", "B-b", "I-b")


def test_spans_of_all_short_sentences():
    """I- at the start, after O and after another type, B- after B-, to the end: all there is in four tags."""
    for tags in itertools.product(TAGS, repeat=4):
        theirs = [(kind, start, end + 1) for kind, start, end in get_entities(list(tags))]
        assert spans(tags) == theirs, tags
        strict = [(e.tag, e.start, e.end) for e in Tokens(list(tags), IOB2).entities]
        assert spans(tags, "strict") == strict, tags
        assert tags_of(spans(tags), 4) == tags_of(spans(tags_of(spans(tags), 4), "strict"), 4)


def test_bare_and_long_tags():
    assert spans(["B", "I", "O", "I-x-y", "I-x-y"]) == [("", 0, 2), ("x-y", 3, 5)]
    assert spans(["I", "B"], "strict") == [("", 1, 2)]
    assert spans([]) == []
    assert tags_of([("x", 1, 3), ("", 3, 4)], 5) == ["O", "B-x", "I-x", "B", "O"]


@pytest.mark.parametrize("mode", ["conlleval", "strict"])
def test_scores(mode):
    generator = np.random.default_rng(seeds.seed())
    gold = [generator.choice(TAGS, 12).tolist() for _ in range(60)]
    kept = [generator.random(12) < 0.8 for _ in gold]
    predicted = [
        np.where(k, g, generator.choice(TAGS, 12)).tolist() for k, g in zip(kept, gold, strict=True)
    ]
    options = {"mode": "strict", "scheme": IOB2} if mode == "strict" else {}
    overall, each = entity_scores(gold, predicted, mode)
    report = seqeval.classification_report(gold, predicted, output_dict=True, **options)
    rows = {"micro avg": overall, **each}
    for name, ours in rows.items():
        theirs = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        figures = np.array([ours.precision, ours.recall, ours.f1, ours.gold])
        assert np.abs(figures - theirs).max() < 1e-15, name  # theirs is rounded once more


def test_nothing_found():
    overall, each = entity_scores([["B-a", "I-a"], ["O", "O"]], [["O", "O"], ["O", "B-b"]])
    assert overall == (0, 0, 0, 1, 1, 0)
    assert list(each) == ["a", "b"]
    assert entity_scores([["O"]], [["O"]]) == ((0, 0, 0, 0, 0, 0), {})


@pytest.mark.parametrize("tag", ["S-a", "B-", "I-", "", "-a", "b-a", "O-a"])
def test_other_tags(tag):
    with pytest.raises(ArgumentError, match=r"tags\[1\]: expected O, B-TYPE or I-TYPE"):
        spans(["O", tag])


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="mode: expected conlleval or strict"):
        spans(["O"], "lenient")
    with pytest.raises(ArgumentError, match="predicted: expected 1 sentences, got 0"):
        entity_scores([["O"]], [])
    with pytest.raises(ArgumentError, match=r"predicted\[0\]: expected 1 tags, got 2"):
        entity_scores([["O"]], [["O", "O"]])
