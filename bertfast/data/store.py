"""A store of tokens on disk, as a memory map."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._files import read_json, write_json
from ..errors import StoreError
from ..text.tokenizer import Tokenizer
from . import shards
from .joined import Joined
from .vocabulary import Vocabulary, describe, read_vocabulary

FILE = "store.json"
TOKENIZER = "tokenizer"
SHARDS = "shards"
VERSION = 1


class Store:
    """The documents of a corpus: sentences of token ids, without special tokens. `Store.open` makes it.

    Documents, sentences and tokens are numbered through the whole store. Arrays are maps of files: what is resident
    does not grow with the corpus, and processes share it.

    Attributes:
        folder: where the store lies.
        fingerprint: SHA-256 of store.json, which holds the hash of everything else.
        tokenizer_folder: tokenizer.json, vocab.txt and tokenizer_config.json of the tokens.
        vocab_size: ids are below it.
        cls, sep, mask, pad, unk: ids of the special tokens.
        unused: int64, sorted ids that are never drawn as random words.
        documents, sentences, tokens: how many.
        document_starts, sentence_starts: the sentence at which each document starts, the token at which each sentence
            starts, and the end after the last.
    """

    def __init__(self, folder: Path, fingerprint: str, about: dict[str, Any]):
        self.folder, self.fingerprint = folder, fingerprint
        self.tokenizer_folder = folder / TOKENIZER
        self.vocabulary_hash: str = about["tokenizer"]["vocabulary"]
        self.vocab_size: int = about["vocab_size"]
        special = about["special"]
        self.cls, self.sep, self.mask = special["cls"], special["sep"], special["mask"]
        self.pad, self.unk = special["pad"], special["unk"]
        self.unused = np.asarray(about["unused"], dtype=np.int64)
        self.documents: int = about["documents"]
        self.sentences: int = about["sentences"]
        self.tokens: int = about["tokens"]
        dtype = np.dtype(about["dtype"])
        full = [
            (shard_folder(folder, number), shard)
            for number, shard in enumerate(about["shards"])
            if shard["documents"]
        ]
        places = [shard for shard, _ in full]
        self._tokens = [_map(shard / "tokens.bin", dtype) for shard in places]
        self._words = [_map(shard / "words.bits", np.uint8) for shard in places]
        sentences = [_map(shard / "sentences.idx", np.uint32) for shard in places]
        documents = [_map(shard / "documents.idx", np.uint32) for shard in places]
        before = _before([shard["tokens"] for _, shard in full])
        self.sentence_starts = Joined(sentences, before, self.tokens)
        before = _before([shard["sentences"] for _, shard in full])
        self.document_starts = Joined(documents, before, self.sentences)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], verify: bool = False) -> Store:
        """The store that `bertfast prepare` made.

        Args:
            verify: read every byte and compare the hashes; the sizes of files are always compared.

        Raises:
            StoreError: no store, one of an unfinished run or of another version, or a file that is damaged.
        """
        folder = Path(folder)
        if not (folder / FILE).is_file():
            found = "an unfinished run" if (folder / SHARDS).is_dir() else "no store"
            raise StoreError(
                f"{folder}: expected a store with the file {FILE}, got {found}. Run bertfast prepare"
                + (" again, which goes on where it stopped." if found != "no store" else " first.")
            )
        about = read_json(folder / FILE, StoreError)
        if about.get("version") != VERSION:
            raise StoreError(
                f"{folder / FILE}: expected version {VERSION}, got {about.get('version')}. Run bertfast prepare of "
                "this release into another folder."
            )
        for number, shard in enumerate(about["shards"]):
            _check_shard(shard_folder(folder, number), shard, verify)
        for file, expected in about["tokenizer"]["files"].items():
            _check_hash(folder / TOKENIZER / file, expected)
        return cls(folder, hashlib.sha256((folder / FILE).read_bytes()).hexdigest(), about)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.folder,)  # another process maps the files itself

    def check_vocabulary(self, other: str | os.PathLike[str] | Any) -> None:
        """Raise StoreError unless `other` has the store's tokens in the same order.

        Args:
            other: a folder with a tokenizer, a `Tokenizer`, or a tokenizer of transformers.
        """
        if vocabulary_of(other).hash != self.vocabulary_hash:
            name = other if isinstance(other, str | os.PathLike) else type(other).__name__
            raise StoreError(
                f"{self.folder}: made with another vocabulary than {name} has. Run bertfast prepare with the "
                "tokenizer of the model, into another folder."
            )

    def copy_tokens(
        self, starts: np.ndarray, lengths: list[int], out: np.ndarray, at: list[int]
    ) -> None:
        """Copy spans of tokens, none across the border of a shard, to places of an array.

        Args:
            starts: int64 [N], the token at which each span starts.
            lengths: of each span. out: an array of integers. at: where in it each span goes.
        """
        for part, start, length, place in zip(*self._local(starts), lengths, at, strict=True):
            out[place : place + length] = self._tokens[part][start : start + length]

    def copy_words(
        self, starts: np.ndarray, lengths: list[int], out: np.ndarray, at: list[int]
    ) -> None:
        """Copy which tokens of spans start a word to an array of bool, as `copy_tokens` does the tokens."""
        for part, start, length, place in zip(*self._local(starts), lengths, at, strict=True):
            packed = self._words[part][start // 8 : (start + length + 7) // 8]
            bits = np.unpackbits(packed, bitorder="little")[start % 8 :]
            out[place : place + length] = bits[:length]

    def _local(self, starts: np.ndarray) -> tuple[list[int], list[int]]:
        """The shard of each token, and the token's number in it."""
        bases = self.sentence_starts.bases
        parts = bases.searchsorted(starts, side="right") - 1
        return parts.tolist(), (starts - bases[parts]).tolist()


def shard_folder(folder: Path, number: int) -> Path:
    """The folder of a shard."""
    return folder / SHARDS / shards.name(number)


def token_dtype(vocab_size: int) -> np.dtype:
    """What a token of a vocabulary is stored in."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_summary(folder: Path, vocabulary: Vocabulary, count: int, more: dict[str, Any]) -> int:
    """Write store.json, which makes a folder with the shards 0 to count - 1 and the tokenizer's files a store.

    Args:
        more: how it was made, for who reads the file.

    Returns:
        how many documents there are; without any, nothing is written.
    """
    summaries = [shards.read_summary(shard_folder(folder, number)) for number in range(count)]
    totals = {
        key: sum(summary[key] for summary in summaries)
        for key in ("documents", "sentences", "tokens")
    }
    files = sorted((folder / TOKENIZER).iterdir())
    about = {
        "version": VERSION,
        **totals,
        **more,
        "dtype": token_dtype(len(vocabulary.tokens)).name,
        "vocab_size": len(vocabulary.tokens),
        "special": vocabulary.special,
        "unused": vocabulary.unused,
        "tokenizer": {
            "vocabulary": vocabulary.hash,
            "files": {path.name: shards.sha256(path) for path in files},
        },
        "shards": summaries,
    }
    if totals["documents"]:
        write_json(folder / FILE, about)
    return totals["documents"]


def vocabulary_of(tokenizer: str | os.PathLike[str] | Any) -> Vocabulary:
    """The vocabulary of a folder with a tokenizer, of a `Tokenizer`, or of a tokenizer of transformers."""
    if isinstance(tokenizer, str | os.PathLike):
        return read_vocabulary(tokenizer)[1]
    inner = tokenizer.backend if isinstance(tokenizer, Tokenizer) else tokenizer
    return describe(inner.get_vocab(), {}, type(tokenizer).__name__)


def _map(path: Path, dtype: Any) -> np.ndarray:
    """A file as an array, read as it is touched. torch's map keeps no file open, numpy's would: four a shard."""
    size = path.stat().st_size
    found = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    found.setflags(write=False)
    return found.view(dtype)


def _before(counts: list[int]) -> np.ndarray:
    return np.cumsum([0, *counts], dtype=np.int64)[:-1]


def _check_shard(folder: Path, expected: dict[str, Any], verify: bool) -> None:
    summary = shards.read_summary(folder)
    if summary != expected:
        raise StoreError(f"{folder / shards.SUMMARY}: says something else than {FILE}. {_ANEW}")
    if verify:
        for file in shards.FILES:
            _check_hash(folder / file, expected["files"][file]["sha256"])


def _check_hash(path: Path, expected: str) -> None:
    if not path.is_file() or shards.sha256(path) != expected:
        raise StoreError(f"{path}: damaged, its hash is not the one in {FILE}. {_ANEW}")


_ANEW = "Remove the folder that it lies in and run bertfast prepare again, which makes it anew."
