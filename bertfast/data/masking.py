"""Which tokens of a batch are to be predicted, and what stands in their place: a function of (seed, epoch, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import ArgumentError
from .philox import WORD, Purpose, below, chance, draw

NO_LABEL = -100  # as in transformers
LONGEST = 1 << 13  # tokens of a sequence
_MOST = 1 << 19  # sequences of a batch


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and replaced.

    Args:
        share: of a sequence's tokens that are chosen: exactly max(1, round(share * length)), special tokens counted in
            the length and never chosen.
        mask, random: probabilities that a chosen token becomes [MASK], or a random token; else it stays.
        whole_words: choose words, not tokens. A word that is larger than what is left to choose is passed over; where
            only such are left, the start of one is taken.
        ngram: choose runs of 1 to `ngram` words (tokens, without whole_words), n with a probability in proportion to
            1/n.

    Raises:
        ArgumentError: a number is out of its range.
    """

    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    whole_words: bool = False
    ngram: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ArgumentError("share", "more than 0 and at most 1", repr(self.share))
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1:
            got = f"mask={self.mask!r}, random={self.random!r}"
            raise ArgumentError("masking", "probabilities whose sum is at most 1", got)
        if not 1 <= self.ngram <= 16:
            raise ArgumentError("ngram", "1 to 16", repr(self.ngram))

    def labels(self, lengths: np.ndarray, special: int) -> np.ndarray:
        """How many tokens are chosen of sequences of these lengths, int64 [N]; `special` of each can not be."""
        wanted = np.maximum(1, np.rint(self.share * np.asarray(lengths))).astype(np.int64)
        return np.minimum(wanted, lengths - special)


class Words(NamedTuple):
    """What the masker knows of a vocabulary.

    Fields:
        mask: the id of [MASK].
        ordinary: integers, the ids that a random token is drawn from.
    """

    mask: int
    ordinary: np.ndarray


def mask(
    tokens: np.ndarray,
    cu_seqlens: np.ndarray,
    special: np.ndarray,
    starts_word: np.ndarray | None,
    *,
    words: Words,
    masking: Masking,
    seed: int,
    epoch: int,
    indices: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a packed batch. What becomes of a sequence depends on nothing but it, seed, epoch and its index.

    Args:
        tokens: int64 [T]. cu_seqlens: integers [B+1], where each sequence starts, and the end.
        special: bool [T], tokens that are never chosen.
        starts_word: bool [T], tokens that start a word; needed for whole words only.
        seed: 0 to 2**64 - 1. epoch: 0 to 2**32 - 1. indices: int64 [B], of the sequences in the epoch.

    Returns:
        the input ids, and the labels: the true id where a token was chosen, -100 elsewhere; int64 [T] both.

    Raises:
        ArgumentError: a sequence of more than 8192 tokens, or more than 2**19 sequences.
    """
    cu_seqlens = np.asarray(cu_seqlens, dtype=np.int64)
    lengths = np.diff(cu_seqlens)
    if len(lengths) >= _MOST or lengths.max(initial=0) > LONGEST:
        expected = f"at most {_MOST} sequences of at most {LONGEST} tokens"
        raise ArgumentError("tokens", expected, f"{len(lengths)} of up to {lengths.max(initial=0)}")
    batch = _Batch(cu_seqlens, lengths, special, seed, epoch, np.asarray(indices))
    specials = np.concatenate([[0], np.cumsum(special)])[cu_seqlens]
    counts = masking.labels(lengths, np.diff(specials))
    if masking.whole_words or masking.ngram > 1:
        if not masking.whole_words:
            starts_word = np.ones(len(tokens), dtype=bool)
        chosen = _choose_words(batch, starts_word, counts, masking.ngram)
    else:
        chosen = _choose_tokens(batch, counts)
    labels = np.full(len(tokens), NO_LABEL, dtype=np.int64)
    labels[chosen] = tokens[chosen]
    inputs = tokens.copy()
    inputs[chosen] = _replaced(batch, tokens[chosen], chosen, words, masking)
    return inputs, labels


class _Batch:
    """The sequences, and the draws of their tokens."""

    def __init__(self, cu_seqlens, lengths, special, seed, epoch, indices):
        self.starts, self.lengths, self.special = cu_seqlens[:-1], lengths, special
        self.row = np.repeat(np.arange(len(lengths)), lengths)
        self.place = np.arange(len(self.row)) - self.starts[self.row]
        self._key, self._indices = (seed, epoch), indices

    def words(self, purpose: Purpose, tokens: np.ndarray) -> list[np.ndarray]:
        """Four words of each of these tokens."""
        seed, epoch = self._key
        return draw(seed, purpose, epoch, self._indices[self.row[tokens]], self.place[tokens])

    def order(self) -> np.ndarray:
        """uint64 [T]: a key whose order in each sequence is random; special tokens come last."""
        fours = (self.lengths + 3) // 4  # a draw serves four tokens
        row = np.repeat(np.arange(len(fours)), fours)
        first = np.cumsum(fours) - fours
        block = np.arange(len(row)) - first[row]
        seed, epoch = self._key
        drawn = draw(seed, Purpose.ORDER, epoch, self._indices[row], block)
        flat = np.stack(drawn, axis=-1).reshape(-1)
        number = flat[4 * first[self.row] + self.place]
        # 19 bits for the row, 1 for special tokens, 31 random ones, 13 for the place: no two are equal
        return (
            self.row.astype(np.uint64) << np.uint64(45)
            | self.special.astype(np.uint64) << np.uint64(44)
            | number >> np.uint64(1) << np.uint64(13)
            | self.place.astype(np.uint64)
        )


def _choose_tokens(batch: _Batch, counts: np.ndarray) -> np.ndarray:
    """The tokens with the smallest keys, `counts` of each sequence."""
    key = np.sort(batch.order())
    taken = _ranges(batch.starts, counts)
    return (key[taken] & np.uint64(LONGEST - 1)).astype(np.int64) + np.repeat(batch.starts, counts)


def _choose_words(
    batch: _Batch, starts_word: np.ndarray, counts: np.ndarray, ngram: int
) -> np.ndarray:
    """The tokens of words in random order, `counts` of each sequence: runs of up to `ngram` words at a time."""
    after_special = np.concatenate([[True], batch.special[:-1]])
    border = np.flatnonzero(starts_word | batch.special | after_special)
    size = np.diff(border, append=len(batch.row))
    ordinary = ~batch.special[border]
    first, size = border[ordinary], size[ordinary]  # of each word
    joined = np.concatenate([first[1:] == (first + size)[:-1], [False]])  # a word comes right after
    in_row = np.bincount(batch.row[first], minlength=len(counts))
    words_before = np.cumsum(in_row) - in_row
    order = batch.order()[first].argsort()
    run = _run_lengths(batch, first, ngram)
    taken, room = np.zeros(len(first), dtype=bool), counts.copy()
    for turn in range(int(in_row.max(initial=0))):
        rows = np.flatnonzero((room > 0) & (turn < in_row))
        if not rows.size:
            break
        word = order[words_before[rows] + turn]
        wanted = run[word]
        for already in range(ngram):
            fits = ~taken[word] & (size[word] <= room[rows]) & (already < wanted)
            rows, word, wanted = rows[fits], word[fits], wanted[fits]
            taken[word] = True
            room[rows] -= size[word]
            more = joined[word]
            rows, word, wanted = rows[more], word[more] + 1, wanted[more]
    part = np.where(taken, size, 0)
    left = order[~taken[order]]  # ordered by sequence: the first of each is cut to what is missing
    rows, where = np.unique(batch.row[first[left]], return_index=True)
    part[left[where]] = room[rows]
    return _ranges(first, part)


def _run_lengths(batch: _Batch, first: np.ndarray, ngram: int) -> np.ndarray:
    """How many words a run has that starts with each word, 1 to ngram, n with probability in proportion to 1/n."""
    if ngram == 1:
        return np.ones(len(first), dtype=np.int64)
    weights = 1 / np.arange(1, ngram + 1)
    borders = np.rint(np.cumsum(weights / weights.sum())[:-1] * WORD).astype(np.uint64)
    return 1 + borders.searchsorted(batch.words(Purpose.NGRAM, first)[0], side="right")


def _replaced(
    batch: _Batch, true: np.ndarray, chosen: np.ndarray, words: Words, masking: Masking
) -> np.ndarray:
    """What stands in the place of chosen tokens."""
    coin, number, _, _ = batch.words(Purpose.REPLACEMENT, chosen)
    random = words.ordinary[below(number, len(words.ordinary))]
    found = np.where(chance(coin, masking.mask + masking.random), random, true)
    return np.where(chance(coin, masking.mask), words.mask, found)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[i], starts[i] + 1, ..., lengths[i] numbers, for each i."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
