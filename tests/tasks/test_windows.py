"""Windows of questions beside plain loops, and answers from a context's characters to tokens and back."""

from __future__ import annotations

import numpy as np
import pytest

from bertfast.errors import ArgumentError
from bertfast.tasks import windows as w
from bertfast.text.tokenizer import Tokenizer
from harness import seeds
from harness.minilm import MINILM

SIZES = [
    (5, 0, 20, 4, 64),
    (5, 12, 20, 4, 64),  # just fits
    (5, 13, 20, 4, 64),  # one too many
    (5, 100, 20, 4, 64),
    (5, 100, 20, 99, 64),  # a stride beyond the window
    (9, 57, 16, 1, 3),  # the question is cut
    (0, 30, 4, 128, 64),  # a token of context each
]


@pytest.mark.parametrize(("question", "context", "length", "stride", "most"), SIZES)
def test_windows_beside_a_loop(question, context, length, stride, most):
    """BERT's own loop; each token in the window that its rule picks."""
    found = w.windows(question, context, max_length=length, stride=stride, max_question=most)
    room = length - min(question, most) - 3
    expected, start = [], 0
    while True:
        size = min(room, context - start)
        expected.append((start, size))
        if start + size == context:
            break
        start += min(size, stride)
    assert list(zip(found.starts.tolist(), found.lengths.tolist(), strict=True)) == expected

    def score(token, window):
        start, size = window
        if not start <= token < start + size:
            return -1
        return 100 * min(token - start, start + size - 1 - token) + size

    best = [max(range(len(expected)), key=lambda n: score(t, expected[n])) for t in range(context)]
    assert w.owners(found).tolist() == best

    asked, text = list(range(100, 100 + question)), list(range(1000, 1000 + context))
    for number, (start, size) in enumerate(expected):
        ids, segments = w.input_ids(found, number, asked, text, 1, 2)
        assert ids == [1, *asked[:most], 2, *text[start : start + size], 2]
        assert len(ids) == len(segments) <= length
        assert segments == [0] * ids.index(2) + [0] + [1] * (size + 1)
        assert ids[found.base : -1] == text[start : start + size]


def test_positions_of_an_answer():
    found = w.windows(5, 30, max_length=20, stride=8)  # 12 tokens in a window, from 0, 8, 16, 24
    assert w.answer_positions(found, (9, 11)).tolist() == [[16, 18], [8, 10], [0, 0], [0, 0]]
    assert w.answer_positions(found, (7, 21)).tolist() == [[0, 0]] * 4
    assert w.answer_positions(found, (29, 29)).tolist()[-1] == [12, 12]
    assert w.answer_positions(found, None).tolist() == [[0, 0]] * 4


def test_tokens_of_an_answer():
    offsets = [(0, 2), (2, 4), (4, 4), (5, 9)]
    assert w.answer_tokens(offsets, 2, 4) == (1, 1)
    assert w.answer_tokens(offsets, 1, 6) == (0, 3)  # parts of tokens count
    assert w.answer_tokens(offsets, 4, 5) is None  # a blank; the empty token is nowhere
    assert w.answer_tokens(offsets, 8, 99) == (3, 3)
    assert w.answer_tokens([], 0, 3) is None


def logits_of(found, generator, levels=None):
    """Start and end logits of each window; few levels make ties."""
    sizes = [found.base + int(length) + 1 for length in found.lengths]
    if levels:
        return [[generator.integers(0, levels, n).astype(float) for n in sizes] for _ in "se"]
    return [[generator.normal(size=n) for n in sizes] for _ in "se"]


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize(("question", "context", "length", "stride", "most"), SIZES)
def test_best_spans_beside_a_loop(question, context, length, stride, most, levels):
    found = w.windows(question, context, max_length=length, stride=stride, max_question=most)
    generator = np.random.default_rng(seeds.seed())
    starts, ends = logits_of(found, generator, levels)
    owner = w.owners(found)
    every = []
    for number, (at, size) in enumerate(zip(found.starts, found.lengths, strict=True)):
        for first in range(size):
            for last in range(first, min(size, first + 4)):
                if owner[at + first] == number:
                    value = starts[number][found.base + first] + ends[number][found.base + last]
                    every.append((-value, at + first, at + last))
    spans = w.best_spans(found, starts, ends, n_best=7, longest=4)
    ours = list(zip(-spans.scores, spans.first, spans.last, strict=True))
    assert ours == sorted(every)[:7]


def test_null_score():
    starts, ends = (
        [np.array([2.0, 9]), np.array([1.0, 9])],
        [np.array([3.0, 9]), np.array([1.5, 9])],
    )
    assert w.null_score(starts, ends) == 2.5


TEXT = "In 1912, Ülo’s café — “Zürich” — sold naïve 我的狗 coffees (€3.50)!"


def test_characters_to_tokens_and_back():
    """Any words of a text come back as they stood, whatever the tokenizer does to accents, case and punctuation."""
    tokenizer = Tokenizer.from_folder(MINILM)
    encoding = tokenizer.backend.encode(TEXT, add_special_tokens=False)
    edges = [(m, n) for m in range(len(TEXT)) for n in range(m + 1, len(TEXT) + 1)]
    whole = {first for first, _ in encoding.offsets}, {last for _, last in encoding.offsets}
    tried = [(m, n) for m, n in edges if m in whole[0] and n in whole[1]]
    assert len(tried) > 100
    for start, stop in tried:
        first, last = w.answer_tokens(encoding.offsets, start, stop)
        assert w.text_of(TEXT, encoding.offsets, first, last) == TEXT[start:stop]


def test_an_answer_through_windows_and_back():
    """Logits that are high at the gold positions of each window give the gold tokens."""
    found = w.windows(4, 50, max_length=25, stride=6)
    for answer in ((0, 3), (17, 20), (49, 49)):
        positions = w.answer_positions(found, answer)
        rows = [np.zeros(found.base + int(n) + 1) for n in found.lengths]
        logits = [[row.copy() for row in rows] for _ in "se"]
        for side, column in zip(logits, positions.T, strict=True):
            for row, position in zip(side, column, strict=True):
                row[position] = 5
        spans = w.best_spans(found, *logits, n_best=1)
        assert (spans.scores[0], spans.first[0], spans.last[0]) == (10, *answer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: w.windows(5, 9, max_length=8), "max_length: expected at least 9"),
        (lambda: w.windows(5, 9, stride=0), "stride: expected at least 1"),
        (
            lambda: w.best_spans(w.windows(1, 2), [], []),
            "start_logits: expected a row for each of 1",
        ),
        (
            lambda: w.best_spans(w.windows(1, 2), [np.zeros(6)], [np.zeros(5)]),
            r"end_logits\[0\]: expected shape \[6\], got \[5\]",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
