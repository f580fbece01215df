"""Corpora and stores for the tests and benchmarks of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertfast.data import shards
from bertfast.data.store import TOKENIZER, Store, shard_folder, token_dtype, write_summary
from bertfast.data.vocabulary import copy_tokenizer, read_vocabulary

from . import seeds

WORDS = (
    *("my", "dog", "is", "hairy", "and", "unbelievably", "clever", "so"),
    *("he", "sleeps", "all", "day", "on", "the", "warm", "roof"),
)


def documents(count: int, number: int = 0) -> list[str]:
    """Texts of 1 to 9 sentences of 1 to 16 words."""
    draw = np.random.default_rng(seeds.seed(number))
    found = []
    for _ in range(count):
        sentences = [
            " ".join(draw.choice(WORDS, draw.integers(1, 17))).capitalize() + "."
            for _ in range(draw.integers(1, 10))
        ]
        found.append(" ".join(sentences))
    return found


def write_store(folder: Path, tokenizer_folder: Path, parts: list[shards.Documents]) -> Store:
    """A store of these documents, a shard for each part."""
    tokenizer, vocabulary = read_vocabulary(tokenizer_folder)
    copy_tokenizer(tokenizer_folder, folder / TOKENIZER, tokenizer, vocabulary.tokens)
    dtype = token_dtype(len(vocabulary.tokens))
    shard_folder(folder, 0).parent.mkdir()
    for number, part in enumerate(parts):
        shards.write_shard(shard_folder(folder, number), [part], dtype)
    write_summary(folder, vocabulary, len(parts), {})
    return Store.open(folder)


def uniform_documents(tokenizer_folder: Path, count: int, number: int) -> shards.Documents:
    """Documents of 2 to 59 sentences of 5 to 39 tokens, each ordinary token with equal chance; a third of them go on
    with a word."""
    draw, ordinary = np.random.default_rng(seeds.seed(number)), ordinary_tokens(tokenizer_folder)
    tokens, lengths, sentences = drawn_documents(draw, ordinary, count, (2, 60), (5, 40))
    return shards.Documents(tokens, draw.random(len(tokens)) > 1 / 3, lengths, sentences)


def ordinary_tokens(tokenizer_folder: Path) -> np.ndarray:
    """All but special and unused ones."""
    _, vocabulary = read_vocabulary(tokenizer_folder)
    return np.setdiff1d(np.arange(len(vocabulary.tokens)), vocabulary.unused)


def drawn_documents(
    draw: np.random.Generator,
    tokens: np.ndarray,
    count: int,
    sentences: tuple[int, int],
    lengths: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, the lengths of sentences, and those of documents in sentences; both lengths are from a range."""
    of_documents = draw.integers(*sentences, count)
    of_sentences = draw.integers(*lengths, of_documents.sum())
    return draw.choice(tokens, of_sentences.sum()), of_sentences, of_documents
