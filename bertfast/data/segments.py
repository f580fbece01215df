"""Documents to tokens, in blocks that a shard writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..checkpoint.hub import require
from ..errors import ArgumentError
from ..text.tokenizer import Tokenizer
from . import sentences
from .shards import Documents
from .vocabulary import PIECE, Vocabulary

SEGMENTERS = ("jieba",)
_CHARACTERS = 1 << 19  # of text that is tokenized at a time


class Segmenter:
    """Tokens, sentences and words of documents.

    Args:
        tokenizer, vocabulary: as `read_vocabulary` gives them.
        split: as `sentences.splitter` gives it.
        words: None: every token that is no ## piece starts a word; "jieba": of Chinese text, only what starts a word
            of jieba does.

    Raises:
        UnsupportedError: jieba is not installed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        split: sentences.Split,
        words: str | None,
    ):
        self._backend, self._split = tokenizer.backend, split
        self._cut = None if words is None else _jieba()
        self._encode = getattr(self._backend, "encode_batch_fast", self._backend.encode_batch)
        self._starts_word = np.array([not t.startswith(PIECE) for t in vocabulary.tokens])

    def blocks(self, documents: Iterable[str]) -> Iterator[Documents]:
        """The documents that have a token, tokenized; sentences without one are left out."""
        texts: list[str] = []
        counts: list[int] = []
        characters = 0
        for document in documents:
            found = sentences.sentences(document, self._split)
            texts += found
            counts.append(len(found))
            characters += len(document)
            if characters >= _CHARACTERS:
                yield self._block(texts, counts)
                texts, counts, characters = [], [], 0
        yield self._block(texts, counts)

    def _block(self, texts: list[str], counts: list[int]) -> Documents:
        encode = self._encode if self._cut is None else self._backend.encode_batch
        encodings = encode(texts, add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        tokens = np.fromiter((token for row in rows for token in row), np.int64, lengths.sum())
        starts = self._starts_word[tokens]
        if self._cut is not None:
            starts &= np.array(
                [
                    first
                    for text, encoding in zip(texts, encodings, strict=True)
                    for first in self._segmented(text, encoding)
                ],
                dtype=bool,
            )
        document = np.repeat(np.arange(len(counts)), counts)[lengths > 0]
        kept = np.bincount(document, minlength=len(counts))
        return Documents(tokens, starts, lengths[lengths > 0], kept[kept > 0])

    def _segmented(self, text: str, encoding: Any) -> Iterator[bool]:
        """Of each token, whether it starts a word of jieba, or is not inside one."""
        inside = set()
        place = 0
        for word in self._cut(text):
            inside.update(range(place + 1, place + len(word)))
            place += len(word)
        for start, stop in encoding.offsets:
            chinese = stop - start == 1 and text[start] > "\u2e7f"
            yield not (chinese and start in inside)


def check_words(words: str | None) -> None:
    """Raise ArgumentError for a segmenter that is not known, UnsupportedError for one that is not installed."""
    if words is not None and words not in SEGMENTERS:
        raise ArgumentError("words", f"one of {', '.join(SEGMENTERS)}, or None", repr(words))
    if words is not None:
        _jieba()


def _jieba() -> Any:
    jieba = require("jieba", "Segmenting Chinese into words")
    jieba.setLogLevel("WARNING")
    return jieba.cut
