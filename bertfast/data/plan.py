"""Which tokens each example of an epoch has: pure functions of (store, seed, epoch, index).

The pair rule. A document is cut into chunks: whole sentences as long as they fit the target length, at least two; a
document's lone last sentence joins the chunk before. Each chunk is one example. It is cut between two sentences,
anywhere with equal chance, and what stands before the cut is the first side. In exactly half of an epoch's examples
(rounded down), drawn among the chunks of two and more sentences, the rest of the chunk is the second side: IsNext. In
the others it is text from another document (each with equal chance, from a sentence with equal chance), as many whole
sentences as fit, at least one; or, with probability `hard`, from elsewhere in the same document: it neither overlaps
the first side nor starts with the sentence that follows it. Where both sides are too long together, the longer one is
shortened, at its start or its end with equal chance.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ..errors import ArgumentError
from .philox import Purpose, below, chance, draw
from .store import Store

PAIR_SPECIAL, SEGMENT_SPECIAL = 3, 2  # [CLS] a [SEP] b [SEP]; [CLS] a [SEP]
_LEAST_PAIR, _LEAST_SEGMENT = 2, 3  # tokens: no example is shorter than 5 with the special ones
_SLICE = 1 << 16  # examples at a time


class Spans(NamedTuple):
    """Where the sides of N examples lie in the store.

    Fields:
        first, second: int64 [N], the token at which each side starts.
        first_length, second_length: int64 [N], tokens; the second are 0 where there is one side.
        follows: bool [N], whether the second side is the true continuation; None where there is one side.
    """

    first: np.ndarray
    first_length: np.ndarray
    second: np.ndarray
    second_length: np.ndarray
    follows: np.ndarray | None


class Plan(Protocol):
    """The examples of an epoch."""

    special: int  # tokens that are put around the sides

    def __len__(self) -> int: ...

    def spans(self, index: np.ndarray) -> Spans:
        """Of the examples with these numbers, int64 [N], in any order."""


class _Targets:
    """How many tokens a chunk may have: `most`, or with probability `short` fewer, uniform from `least` on."""

    def __init__(self, seed: int, epoch: int, short: float, least: int, most: int):
        self._key, self._short, self._least, self._most = (seed, epoch), short, least, most

    def __call__(self, start: np.ndarray) -> np.ndarray:
        """Of chunks that start with these sentences, or at these tokens; int64 [N]."""
        if not self._short:
            return np.full(start.shape, self._most, dtype=np.int64)
        seed, epoch = self._key
        coin, size, _, _ = draw(seed, Purpose.TARGET, epoch, start)
        shorter = self._least + below(size, self._most - self._least + 1)
        return np.where(chance(coin, self._short), shorter, self._most)


class Segments:
    """Examples of one side: a document's tokens in order, cut where the target length is reached; ends of fewer than 3
    tokens are left out.

    Args:
        documents: int64, sorted numbers of the documents; None: all.
        length: the most tokens of an example, special ones counted.
        short: probability of a shorter target.

    Raises:
        ArgumentError: there is no document of 3 tokens.
    """

    special = SEGMENT_SPECIAL

    def __init__(
        self,
        store: Store,
        documents: np.ndarray | None,
        seed: int,
        epoch: int,
        *,
        length: int,
        short: float,
    ):
        targets = _Targets(seed, epoch, short, _LEAST_SEGMENT, length - self.special)
        start, end = _borders(store, documents)
        start, end = store.sentence_starts[start], store.sentence_starts[end]
        self._start, stop = _follow(start, end, lambda at, end: np.minimum(at + targets(at), end))
        size = stop - self._start
        self._start = self._start[size >= _LEAST_SEGMENT]
        self._size = size[size >= _LEAST_SEGMENT].astype(np.int32)
        if not len(self):
            raise ArgumentError(
                "store", "a document of 3 tokens or more", f"only shorter ones in {store.folder}"
            )

    def __len__(self) -> int:
        return len(self._start)

    def spans(self, index: np.ndarray) -> Spans:
        """Of the examples with these numbers, int64 [N], in any order."""
        none = np.zeros(index.shape, dtype=np.int64)
        return Spans(self._start[index], self._size[index].astype(np.int64), none, none, None)


class Pairs:
    """Examples of two sides, by the pair rule. 13 bytes of memory an example.

    Args:
        documents, length, short: as of `Segments`.
        hard: probability that a false second side comes from the same document, where that has another sentence.

    Raises:
        ArgumentError: there is one document, or more than half of the chunks hold one sentence.
    """

    special = PAIR_SPECIAL

    def __init__(
        self,
        store: Store,
        documents: np.ndarray | None,
        seed: int,
        epoch: int,
        *,
        length: int,
        hard: float,
        short: float,
    ):
        self._store, self._documents = store, documents
        self._count = store.documents if documents is None else len(documents)
        if self._count < 2:
            raise ArgumentError(
                "next_sentence",
                "two documents or more, as a false second sentence comes from another one",
                f"{self._count} in {store.folder}",
                "Pass next_sentence=False.",
            )
        self._seed, self._epoch, self._hard = seed, epoch, hard
        self._most = length - self.special
        self._targets = _Targets(seed, epoch, short, _LEAST_PAIR, self._most)
        self._start, stop = self._chunks()
        self._sentences = (stop - self._start).astype(np.int32)
        self._follows = self._half()

    def __len__(self) -> int:
        return len(self._start)

    def spans(self, index: np.ndarray) -> Spans:
        """Of the examples with these numbers, int64 [N], in any order."""
        tokens = self._store.sentence_starts
        start, follows = self._start[index], self._follows[index]
        stop = start + self._sentences[index]
        where, document, sentence, coin = draw(self._seed, Purpose.PAIR, self._epoch, index)
        cut = np.minimum(start + 1 + below(where, np.maximum(stop - start - 1, 1)), stop)
        first, middle = tokens[start], tokens[cut]
        source, source_stop = cut.copy(), stop.copy()
        false = np.flatnonzero(~follows)
        room = np.maximum(self._targets(start[false]) - (middle - first)[false], 1)
        source[false], source_stop[false] = self._false(
            start[false], cut[false], room, document[false], sentence[false], coin[false]
        )
        second = tokens[source]
        return self._shortened(
            index, first, middle - first, second, tokens[source_stop] - second, follows
        )

    def _chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """The first sentence of each chunk, and the one after its last; in order."""
        tokens = self._store.sentence_starts

        def stop(start: np.ndarray, end: np.ndarray) -> np.ndarray:
            fits = tokens.last_at_most(tokens[start] + self._targets(start))
            stop = np.minimum(np.maximum(fits, start + 2), end)
            return np.where(end - stop == 1, end, stop)

        return _follow(*_borders(self._store, self._documents), stop)

    def _half(self) -> np.ndarray:
        """Which chunks are IsNext, bool: those of the smallest 64-bit draws; equal draws, by their order."""
        wanted, able = len(self) // 2, np.flatnonzero(self._sentences > 1)
        if len(able) < wanted:
            raise ArgumentError(
                "next_sentence",
                "two sentences or more in half of the sequences, as half are pairs that follow each other",
                f"{len(able)} of {len(self)} in {self._store.folder}",
                "Pass next_sentence=False, or leave out documents of one sentence.",
            )
        follows = np.zeros(len(self), dtype=bool)
        if wanted:
            high, low, _, _ = draw(self._seed, Purpose.FOLLOWS, self._epoch, able)
            key = high << np.uint64(32) | low
            largest = np.partition(key, wanted - 1)[wanted - 1]
            follows[able[key < largest]] = True
            follows[able[key == largest][: wanted - int(follows.sum())]] = True
        return follows

    def _false(
        self,
        start: np.ndarray,
        cut: np.ndarray,
        room: np.ndarray,
        document: np.ndarray,
        sentence: np.ndarray,
        coin: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """False second sides for first sides of the sentences start to cut: their first sentence, and the one after
        their last. `room` is how many tokens they may have; the others are words of the draw."""
        borders, tokens = self._store.document_starts, self._store.sentence_starts
        own = borders.last_at_most(start)
        own_start, own_end = borders[own], borders[own + 1]
        rank = own if self._documents is None else self._documents.searchsorted(own)
        other = below(document, self._count - 1)
        other += other >= rank
        other = other if self._documents is None else self._documents[other]
        source, end = borders[other], borders[other + 1]
        source += below(sentence, end - source)
        if self._hard:
            before, after = start - own_start, np.maximum(own_end - cut - 1, 0)
            near = chance(coin, self._hard) & (before + after > 0)
            choice = below(sentence, before + after)
            earlier = choice < before
            there = np.where(earlier, own_start + choice, cut + 1 + choice - before)
            source = np.where(near, there, source)
            end = np.where(near, np.where(earlier, start, own_end), end)
        stop = tokens.last_at_most(tokens[source] + room)
        return source, np.minimum(np.maximum(stop, source + 1), end)

    def _shortened(
        self,
        index: np.ndarray,
        first: np.ndarray,
        first_length: np.ndarray,
        second: np.ndarray,
        second_length: np.ndarray,
        follows: np.ndarray,
    ) -> Spans:
        """The sides, shortened to the most tokens. Where both are longer than half, both are cut to half."""
        kept = np.minimum(first_length, np.maximum(self._most - second_length, -(-self._most // 2)))
        second_kept = np.minimum(second_length, self._most - kept)
        at_start = draw(self._seed, Purpose.PAIR, self._epoch, index, 1)
        first = first + np.where(chance(at_start[0], 0.5), first_length - kept, 0)
        second = second + np.where(chance(at_start[1], 0.5), second_length - second_kept, 0)
        return Spans(first, kept, second, second_kept, follows)


def lengths(plan: Plan) -> np.ndarray:
    """Tokens of each example, special ones counted, int32 [N]."""
    found = np.empty(len(plan), dtype=np.int32)
    for start in range(0, len(plan), _SLICE):
        index = np.arange(start, min(start + _SLICE, len(plan)))
        spans = plan.spans(index)
        found[index] = spans.first_length + spans.second_length + plan.special
    return found


def _borders(store: Store, documents: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The first sentence of each document, and the one after its last."""
    borders = store.document_starts.range(0, store.documents)
    start, end = borders[:-1], borders[1:]
    return (start, end) if documents is None else (start[documents], end[documents])


def _follow(start: np.ndarray, end: np.ndarray, stop) -> tuple[np.ndarray, np.ndarray]:
    """Where each chunk starts and stops, in order. All documents, from `start` to `end`, are followed together:
    `stop(start, end)` says where the chunk that starts there stops."""
    starts, stops = [start[:0]], [start[:0]]
    while start.size:
        found = stop(start, end)
        starts.append(start)
        stops.append(found)
        alive = found < end
        start, end = found[alive], end[alive]
    start, stop = np.concatenate(starts), np.concatenate(stops)
    order = start.argsort()
    return start[order], stop[order]
