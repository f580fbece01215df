"""What a pretrained model has to beat: word frequencies, and how alike the two sides of a pair are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np

from ..data.batches import Batch
from ..data.masking import NO_LABEL
from ..data.store import Store
from ..data.vocabulary import PIECE, read_vocabulary
from ..inference.encoder import Encoder

_BLOCK = 1 << 22  # tokens that are counted at a time


class Counts(NamedTuple):
    """How often each token of the vocabulary is in documents of a store.

    Fields:
        tokens: int64 [V]. sentences: int64 [V], how many sentences hold it. total: sentences in all.
    """

    tokens: np.ndarray
    sentences: np.ndarray
    total: int

    def unigram_loss(self, labels: np.ndarray) -> float:
        """Mean -log of the labels' add-one frequencies, nats; labels int64 [N]."""
        found = np.log(self.tokens.sum() + len(self.tokens)) - np.log(self.tokens + 1)
        return float(found[labels].mean())

    def most_frequent(self, unused: np.ndarray) -> int:
        """The token that is there most often, of all but these."""
        ordinary = self.tokens.copy()
        ordinary[unused] = -1
        return int(ordinary.argmax())

    def idf(self) -> np.ndarray:
        """log((1 + sentences) / (1 + sentences that hold it)) of each token, float64 [V]."""
        return np.log1p(self.total) - np.log1p(self.sentences)


def count(store: Store, documents: np.ndarray | None) -> Counts:
    """Of documents, sorted int64; None: all."""
    if documents is None:
        documents = np.arange(store.documents)
    first, end = store.document_starts[documents], store.document_starts[documents + 1]
    start = store.sentence_starts[first]
    size = store.sentence_starts[end] - start
    tokens, holding = np.zeros((2, store.vocab_size), dtype=np.int64)
    block = (np.cumsum(size) - size) // _BLOCK
    for some in np.split(np.arange(len(size)), np.flatnonzero(np.diff(block)) + 1):
        ends = np.cumsum(size[some])
        found = np.empty(ends[-1], dtype=np.int64)
        store.copy_tokens(start[some], size[some].tolist(), found, (ends - size[some]).tolist())
        tokens += np.bincount(found, minlength=store.vocab_size)
        found += store.vocab_size * _sentence_of_each(store, first[some], end[some])
        once = np.unique(found) % store.vocab_size
        holding += np.bincount(once, minlength=store.vocab_size)
    return Counts(tokens, holding, int((end - first).sum()))


def _sentence_of_each(store: Store, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The sentence of each token of documents, those of the sentences `first` to `end`; numbered from 0."""
    sentences = np.concatenate([np.arange(*pair) for pair in zip(first, end, strict=True)])
    lengths = store.sentence_starts[sentences + 1] - store.sentence_starts[sentences]
    return np.repeat(np.arange(len(sentences)), lengths)


class Pairs(NamedTuple):
    """Both sides of N examples before masking.

    Fields:
        first, second: tokens of each side, int64 arrays. follows: bool [N].
    """

    first: list[np.ndarray]
    second: list[np.ndarray]
    follows: np.ndarray


def pairs_of(batch: Batch) -> Pairs:
    """The pairs of a batch that has next sentences."""
    labels, tokens = batch.labels[0].numpy(), batch.input_ids[0].numpy()
    tokens = np.where(labels == NO_LABEL, tokens, labels)
    starts, ends = batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist()
    seconds = np.add.reduceat(batch.token_type_ids[0].numpy(), starts).tolist()
    first, second = [], []
    for start, end, size in zip(starts, ends, seconds, strict=True):
        middle = end - size  # [CLS] first [SEP], then second [SEP]
        first.append(tokens[start + 1 : middle - 1])
        second.append(tokens[middle : end - 1])
    return Pairs(first, second, batch.next_sentence_label.numpy() == 0)


Score = Callable[[Pairs], np.ndarray]  # how alike the sides are, float [N]


def bag_of_words(idf: np.ndarray) -> Score:
    """Cosine of the sides' token counts times `idf` [V]; 0 where one side has no weight."""

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        (a, x), (b, y) = (np.unique(side, return_counts=True) for side in (one, other))
        x, y = x * idf[a], y * idf[b]
        _, in_a, in_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
        norm = np.sqrt((x @ x) * (y @ y))
        return float(x[in_a] @ y[in_b] / norm) if norm else 0.0

    return lambda pairs: np.array(list(map(cosine, pairs.first, pairs.second)))


def embedded(encoder: Encoder, store: Store) -> Score:
    """Cosine of the vectors that an encoder gives the sides' texts; each text is encoded once."""
    words, known = read_vocabulary(store.tokenizer_folder)[1].tokens, {}

    def text(side: np.ndarray) -> str:
        return " ".join(words[i] for i in side).replace(f" {PIECE}", "").removeprefix(PIECE)

    def cosines(pairs: Pairs) -> np.ndarray:
        sides = [[text(side) for side in part] for part in pairs[:2]]
        new = [text for text in dict.fromkeys(chain(*sides)) if text not in known]
        known.update(zip(new, encoder.encode(new, normalize=True), strict=True))
        first, second = (np.stack([known[text] for text in part]) for part in sides)
        return (first * second).sum(1)

    return cosines


def fit_threshold(scores: np.ndarray, follows: np.ndarray) -> float:
    """The score from which on a pair is taken as following, so that most of these pairs are told right."""
    order = scores.argsort()
    scores, follows = scores[order], follows[order]
    right = np.cumsum([follows.sum(), *np.where(follows, -1, 1)])  # from this place on it follows
    apart = np.concatenate([[True], scores[1:] > scores[:-1], [True]])
    place = int(np.where(apart, right, -1).argmax())
    return float(scores[place]) if place < len(scores) else np.inf
