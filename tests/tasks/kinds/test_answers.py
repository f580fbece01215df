"""Questions: what is learnt, and answers by characters of the original text, at borders, in windows, and of none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bertfast.data.labelled.questions import Answer
from bertfast.errors import ArgumentError
from bertfast.tasks.kinds import Answers

ASKED = "where did anna go"  # 4 tokens


def outputs_of(sequences, place: tuple[int, int] | None, null: float = 0.0) -> list[np.ndarray]:
    """Logits of one example that say context tokens first to last, in each window that holds them."""
    (context,) = sequences.details
    found = []
    for start, length, count in zip(*context.windows[:2], sequences.lengths, strict=True):
        row = np.zeros((2, count))
        row[:, 0] = null / 2
        if place is not None:
            for side, token in enumerate(place):
                if 0 <= token - start < length:
                    row[side, context.windows.base + token - start] = 5.0
        found.append(row)
    return found


def answer_of(kind: Answers, text: str, place: tuple[int, int] | None, null: float = 0.0):
    sequences = kind.encode([(ASKED, text)])
    found = kind.gather(sequences, outputs_of(sequences, place, null))
    return kind.answers([(ASKED, text)], found)[0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris is a town", "Paris"),  # at the start
        ("anna went to Paris", "Paris"),  # at the end
        ("Paris", "Paris"),  # the whole
        ("a Cafe\u0301, in Paris", "Cafe\u0301"),  # an accent that is a character of its own
        ("a Café, in Paris", "Café"),
        ("in Cafe\u0301", "Cafe\u0301"),
        ("\U0001f600 hi \U0001f468\u200d\U0001f469 Paris \U0001f600", "Paris"),
        ("by \U0001f600, then", "\U0001f600"),
        ("我住在北京。", "北京"),
        ("  two  \n blanks ", "two  \n blanks"),
        ("a\u200bb c", "a\u200bb"),
    ],
)
def test_original_text(kind_of, text, answer):
    """The tokens of an answer, there and back: what is learnt of it is what is told by it."""
    kind, start = kind_of("qa", max_length=40), text.index(answer)
    sequences = kind.encode([(ASKED, text)])
    targets = kind.targets([[Answer(answer, start)]], sequences).examples
    base = sequences.details[0].windows.base
    place = tuple(int(targets[f"{side}_positions"][0]) - base for side in ("start", "end"))
    assert min(place) >= 0
    found = answer_of(kind, text, place)
    assert found[:3] == (answer, start, start + len(answer))
    assert text[found.start : found.stop] == found.text


@pytest.mark.parametrize("stride", [3, 5, 128])
def test_positions_in_windows(kind_of, tokenizer, stride):
    """In each window that holds all of the answer where its tokens are, else at [CLS]; segments are 0 and 1."""
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    kind = kind_of("qa", max_length=20, stride=stride)  # 13 tokens of context
    sequences = kind.encode([(ASKED, text)])
    gold = "h i j"
    targets = kind.targets([[Answer(gold, text.index(gold))]], sequences).examples
    ids = tokenizer.ids([gold])[0]
    (cls, sep), asked = tokenizer.cls_sep, tokenizer.ids([ASKED])[0]
    inside = 0
    for number in range(len(sequences)):
        part = slice(sequences.starts[number], sequences.starts[number + 1])
        row = sequences.tokens[part].tolist()
        assert row[:6] == [cls, *asked, sep]
        assert sequences.types[part].tolist() == [0] * 6 + [1] * (len(row) - 6)
        first, last = (int(targets[f"{side}_positions"][number]) for side in ("start", "end"))
        if set(ids) <= set(row[6:]):
            inside += 1
            assert row[first : last + 1] == ids
        else:
            assert (first, last) == (0, 0)
    assert inside == {3: 3, 5: 2, 128: 1}[stride]
    places = ((0, 0), (7, 9), (25, 25), (11, 14))
    for place in (
        places if stride < 13 else places[:-1]
    ):  # a window has 13, and the last one ends at the next
        assert answer_of(kind, text, place).text == text[2 * place[0] : 2 * place[1] + 1]


def test_windows_overlap(kind_of):
    """Unless a stride is given, by a third: short answers are found anywhere. BERT's 384 tokens move by 128."""
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    kind = kind_of("qa", max_length=20)
    for first in range(24):
        assert answer_of(kind, text, (first, first + 2)).text == text[2 * first : 2 * first + 5]
    for length in (256, 384):
        (context,) = kind_of("qa", max_length=length).encode([(ASKED, text * 20)]).details
        assert context.windows.starts[:3].tolist() == [0, 128, 256]


def test_null_threshold(kind_of):
    """None is told where it scores more than the threshold above the best answer; tuned where that is best for F1."""
    text = "anna went to Paris"
    best = 10.0  # two logits of 5
    for null, threshold, told in ((10.5, 1.0, "Paris"), (11.5, 1.0, ""), (9.0, -2.0, "")):
        kind = kind_of("qa", max_length=40, nulls=True, null_threshold=threshold)
        found = answer_of(kind, text, (3, 3), null)
        assert found.text == told
        assert found.null_score == null - best  # exact in float64
        assert 0 < found.probability < 1
    assert (
        answer_of(kind_of("qa", max_length=40), text, (3, 3), 99).text == "Paris"
    )  # as in SQuAD 1
    kind = kind_of("qa", max_length=40, nulls=True)
    golds, found = [], []
    for number in range(6):  # those without an answer score 3 to 5, the others 0 to 2
        sequences = kind.encode([(ASKED, text)])
        found += kind.gather(sequences, outputs_of(sequences, (3, 3), best + number))
        golds.append([Answer("Paris", 13)] if number < 3 else [])
    assert kind.scores(golds, found)["f1"] == 4 / 6
    form = kind.tuned(golds, found)
    assert 2 <= form.null_threshold < 3
    assert Answers(form, kind.tokenizer).scores(golds, found) == {
        "f1": 1.0,
        "exact_match": 1.0,
        "answered_f1": 1.0,
        "null_f1": 1.0,
    }


def test_limit_of_length(kind_of):
    """From the data: .99 of the answers are no longer; at least 30 tokens."""
    kind = kind_of("qa", max_length=60)
    text = " ".join("abcdefghijklmnopqrstuvwxyz0123456789" + "abcdefghi")
    for longest, limit in ((20, 30), (36, 36)):
        gold = [Answer(text[: 2 * longest - 1], 0)]
        sequences = kind.encode([(ASKED, text)] * 50)
        form = kind.limited([gold] * 50, sequences)
        assert form.longest == limit
    kind = Answers(form, kind.tokenizer)
    assert len(answer_of(kind, text, (0, 35)).text.split()) == 36
    assert len(answer_of(kind, text, (0, 36)).text.split()) < 36  # not both of its ends
    mixed = [[Answer("a", 0)]] * 99 + [gold]
    assert kind.limited(mixed, kind.encode([(ASKED, text)] * 100)).longest == 30


def test_context_without_tokens(kind_of):
    """Characters that the tokenizer drops: no answer, and numbers that JSON has."""
    for nulls in (False, True):
        found = answer_of(kind_of("qa", nulls=nulls), "\u200b\u200d", None, 3.0)
        assert found == ("", 0, 0, 1.0, 3.0)
        assert math.isfinite(found.null_score)


def test_kept_mismatches(kind_of):
    """A kept answer is learnt where it is said to be; outside of the text there is none to learn."""
    kind = kind_of("qa", max_length=40)
    sequences = kind.encode([(ASKED, "anna went to Paris")] * 2)
    golds = [[Answer("Paris", 5)], [Answer("Paris", 400)]]
    targets = kind.targets(golds, sequences).examples
    base = sequences.details[0].windows.base
    assert targets["start_positions"].tolist() == [base + 1, 0]
    assert targets["end_positions"].tolist() == [base + 1, 0]


def test_chinese_scores(kind_of):
    sequences = kind_of("qa", max_length=40).encode([(ASKED, "我住在北京")])
    golds = [[Answer("北京", 3)]]
    for language, f1 in (("zh", 2 * (2 / 3) / (5 / 3)), ("en", 0.0)):
        kind = kind_of("qa", max_length=40, language=language)
        found = kind.gather(sequences, outputs_of(sequences, (2, 4)))
        assert abs(kind.scores(golds, found)["f1"] - f1) < 1e-12  # rounding


@pytest.mark.parametrize("item", ["a", ("a",), ("a", 3), (None, "a"), ("a", ["b"])])
def test_wrong_questions(kind_of, item):
    with pytest.raises(ArgumentError, match=r"texts\[1\]"):
        kind_of("qa").encode([("a", "b"), item])
