"""What is masked: exact counts, and the statistics of what is chosen and of what stands in its place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from bertfast.data.masking import Masking, Words, mask
from bertfast.errors import ArgumentError
from bertfast.tasks.pretraining import Pretraining

UNLIKELY = 1e-6  # the least probability that a statistic may have
MASKINGS = (
    Masking(),
    Masking(whole_words=True),
    Masking(whole_words=True, ngram=3),
    Masking(ngram=3),
)


def whole_epoch(task: Pretraining, epoch: int = 0) -> list[np.ndarray]:
    """input_ids, labels, token_type_ids, cu_seqlens of an epoch as one batch."""
    found = task.collate(np.arange(task.examples(epoch)), epoch)
    tensors = (found.input_ids[0], found.labels[0], found.token_type_ids[0], found.cu_seqlens)
    return [tensor.numpy() for tensor in tensors]


@pytest.fixture(scope="module")
def epochs(large):
    """Two epochs of one-sided examples, which are 128 tokens long but for the ends of documents."""
    task = Pretraining(large, seed=1, next_sentence=False)
    return task, [whole_epoch(task, epoch) for epoch in (0, 1)]


@pytest.mark.parametrize("masking", MASKINGS, ids=str)
def test_count_is_exact_and_specials_are_never_chosen(large, masking):
    task = Pretraining(large, seed=3, masking=masking)
    _, labels, _, cu_seqlens = whole_epoch(task)
    lengths = np.diff(cu_seqlens)
    counts = np.add.reduceat(labels != -100, cu_seqlens[:-1])
    np.testing.assert_array_equal(counts, [max(1, round(0.15 * n)) for n in lengths.tolist()])
    np.testing.assert_array_equal(counts, task.labels(0))
    np.testing.assert_array_equal(lengths, task.lengths(0))
    assert not np.isin(labels[labels != -100], large.unused).any()  # the store has no such token


def test_replacements(large, epochs):
    """80 % [MASK], 10 % random, 10 % as before; no other token is touched, and random ones are uniform."""
    _, ((inputs, labels, _, _), _) = epochs
    plain = whole_epoch(
        Pretraining(large, seed=1, next_sentence=False, masking=Masking(mask=0, random=0))
    )
    chosen = labels != -100
    np.testing.assert_array_equal(plain[0][chosen], labels[chosen])
    np.testing.assert_array_equal(plain[0][~chosen], inputs[~chosen])
    ordinary = np.setdiff1d(np.arange(large.vocab_size), large.unused)
    there, true = inputs[chosen], labels[chosen]
    same, masked = there == true, there == large.mask
    observed = [masked.sum(), (~masked & ~same).sum(), same.sum()]
    by_chance = 0.1 / len(ordinary)  # a random token is the true one
    expected = np.array([0.8, 0.1 - by_chance, 0.1 + by_chance]) * chosen.sum()
    assert chosen.sum() > 280_000
    assert stats.chisquare(observed, expected).pvalue > UNLIKELY
    random = there[~masked & ~same]
    assert np.isin(random, ordinary).all()
    counts = np.bincount(ordinary.searchsorted(random), minlength=len(ordinary))
    assert stats.chisquare(counts).pvalue > UNLIKELY


def test_places_are_uniform(epochs):
    """In sequences of 128 tokens, of which 19 of 126 are chosen without replacement."""
    _, ((_, labels, _, cu_seqlens), _) = epochs
    full = np.flatnonzero(np.diff(cu_seqlens) == 128)
    chosen = labels[cu_seqlens[full][:, None] + np.arange(128)] != -100
    counts = chosen.sum(0)
    assert counts[0] == counts[127] == 0
    mean = len(full) * 19 / 126
    statistic = ((counts[1:127] - mean) ** 2 / mean).sum() * 125 / (126 - 19)
    assert len(full) > 10_000
    assert UNLIKELY < stats.chi2.sf(statistic, 125) < 1 - UNLIKELY


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """How many standard deviations the tokens that both choose, rows [N, 128], are from independence."""
    both = (first & second).sum()
    mean, variance = stats.hypergeom.stats(126, 19, 19)
    return float(abs(both - len(first) * mean) / np.sqrt(len(first) * variance))


def test_masks_are_independent(large, epochs):
    """Of another epoch's, of the neighbouring seed's and of the neighbouring example's."""
    _, ((_, labels, _, cu_seqlens), (_, next_epoch, _, same)) = epochs
    np.testing.assert_array_equal(cu_seqlens, same)
    other_seed = whole_epoch(Pretraining(large, seed=2, next_sentence=False))[1]
    full = np.flatnonzero(np.diff(cu_seqlens) == 128)
    rows = cu_seqlens[full][:, None] + np.arange(128)
    chosen, *others = (found[rows] != -100 for found in (labels, next_epoch, other_seed))
    for other in (*others, np.roll(chosen, 1, axis=0)):
        assert _overlap(chosen, other) < 5
    assert _overlap(chosen, chosen) > 100


def sequences(rows: list[str]):
    """tokens, cu_seqlens, special and starts_word of rows such as "^ab cd ef$": letters are tokens, a space starts a
    word."""
    tokens, starts, special, cu_seqlens = [], [], [], [0]
    for row in rows:
        border = True
        for letter in row:
            if letter == " ":
                border = True
                continue
            tokens.append(ord(letter))
            special.append(letter in "^$")
            starts.append(border)
            border = letter in "^$"
        cu_seqlens.append(len(tokens))
    return np.array(tokens), np.array(cu_seqlens), np.array(special), np.array(starts)


def masked_letters(rows: list[str], masking: Masking, seed: int = 1) -> list[str]:
    """The tokens that are chosen of each row."""
    tokens, cu_seqlens, special, starts = sequences(rows)
    _, labels = mask(
        tokens,
        cu_seqlens,
        special,
        starts,
        words=Words(1, np.arange(5, 90)),
        masking=masking,
        seed=seed,
        epoch=0,
        indices=np.arange(len(rows)),
    )
    parts = np.split(labels, cu_seqlens[1:-1])
    return ["".join(chr(label) for label in part if label != -100) for part in parts]


def test_whole_words():
    """Words are chosen whole; where none fits, the start of one."""
    rows = ["^ab cd ef gh$ijkl mn$"] * 200
    found = masked_letters(rows, Masking(share=0.25, whole_words=True))  # 4 of 17
    pieces = ("ab", "cd", "ef", "gh", "ijkl", "mn")
    assert all(len(text) == 4 for text in found)
    for text in found:
        left = text
        for piece in pieces:
            left = left.replace(piece, "")
        assert left == "", text
    assert len(set(found)) == 11  # ijkl, and any two of the other five
    found = masked_letters(["^abcd efgh$"] * 200, Masking(share=0.3, whole_words=True))  # 3 of 10
    assert set(found) == {"abc", "efg"}
    found = masked_letters(["^abc d efg$"] * 200, Masking(share=0.25, whole_words=True))  # 2 of 9
    assert set(found) == {"ad", "de"}


def _in_a_row(texts: list[str]) -> float:
    """The share of texts whose letters follow each other in the alphabet."""
    return float(np.mean([all(ord(b) - ord(a) == 1 for a, b in pairwise(text)) for text in texts]))


def test_ngrams():
    """Runs of 1, 2 and 3 tokens begin with probabilities 6/11, 3/11 and 2/11, and never cross a special token."""
    rows = ["^abcdefghijklmnopqrstuvwxyz$"] * 6000
    found = masked_letters(rows, Masking(share=0.11, ngram=3))  # 3 of 28
    assert {len(text) for text in found} == {3}
    # 2/11 by a run of three; else by a shorter one and a neighbour, at most 4 of 26 places each time
    assert 2 / 11 - 0.02 < _in_a_row(found) < 2 / 11 + 0.1
    assert _in_a_row(masked_letters(rows, Masking(share=0.11))) < 0.02  # 24 / C(26, 3)
    two = _in_a_row(masked_letters(rows, Masking(share=0.07, ngram=2)))  # 2 of 28: 1/3 by a run
    assert abs(two - (1 / 3 + 2 / 3 * 2 / 26)) < 0.04
    assert set(masked_letters(["^a$b$"] * 50, Masking(share=0.4, ngram=2))) == {"ab"}
    assert set(masked_letters(["^a$b$"] * 50, Masking(share=0.2, ngram=2))) == {"a", "b"}


@pytest.mark.parametrize(
    "bad", [{"share": 0}, {"share": 1.1}, {"mask": 0.8, "random": 0.3}, {"mask": -1}, {"ngram": 0}]
)
def test_bad_masking(bad):
    with pytest.raises(ArgumentError):
        Masking(**bad)


def test_too_long():
    tokens = np.zeros(8193, dtype=np.int64)
    options = {"words": Words(1, tokens), "masking": Masking(), "seed": 1, "epoch": 0}
    with pytest.raises(ArgumentError, match="at most 8192 tokens"):
        mask(tokens, np.array([0, 8193]), tokens > 0, None, indices=np.arange(1), **options)
