"""Vocabularies: what a store must know of one, and WordPiece vocabularies made from a corpus."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .._files import atomic_write, read_json
from ..checkpoint.hub import require
from ..errors import ArgumentError, CheckpointError, UnsupportedError
from ..text.tokenizer import Tokenizer

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
PIECE = "##"  # what the tokens that go on with a word begin with
TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
_ALPHABET = 1000  # characters that a vocabulary of an alphabetic language keeps, as BERT's own
_LENGTH = 512


class Vocabulary(NamedTuple):
    """The tokens of a tokenizer by their ids, and which are special.

    Fields:
        tokens: of id 0, 1, ...; "" where an id has none.
        special: ids by name: pad, unk, cls, sep, mask.
        unused: sorted ids that no text gives: the special tokens, [unusedN], and ids without a token.
    """

    tokens: list[str]
    special: dict[str, int]
    unused: list[int]

    @property
    def hash(self) -> str:
        """SHA-256 of the tokens in order."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()


def read_vocabulary(folder: str | os.PathLike[str]) -> tuple[Tokenizer, Vocabulary]:
    """The tokenizer of a checkpoint folder, which reads special tokens in a text as plain text; and its vocabulary.

    Raises:
        CheckpointError: there is no tokenizer, or it lacks [MASK] or another of BERT's special tokens.
        UnsupportedError: a tokenizer that the library `tokenizers` does not run.
    """
    folder = Path(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if not hasattr(tokenizer.backend, "encode_special_tokens"):
        raise UnsupportedError(
            f"{folder}: the tokenizer is written in Python; a store needs one of `tokenizers`."
        )
    tokenizer.backend.encode_special_tokens = True
    path = folder / "tokenizer_config.json"
    config = read_json(path, CheckpointError) if path.is_file() else {}
    names = {role: _content(config.get(f"{role}_token")) or SPECIAL[role] for role in SPECIAL}
    vocabulary = describe(tokenizer.backend.get_vocab(), names, str(folder))
    if not (folder / "tokenizer.json").is_file():
        # transformers adds what is missing, past the end of the model's word table
        listed = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        describe({token: n for n, token in enumerate(listed)}, names, str(folder / "vocab.txt"))
    return tokenizer, vocabulary


def describe(ids: dict[str, int], names: dict[str, str], place: str) -> Vocabulary:
    """The vocabulary of `ids`, token to id, in which the special tokens have these `names`.

    Raises:
        CheckpointError: one of them is not there; it says `place`.
    """
    for role, token in names.items():
        if token not in ids:
            raise CheckpointError(
                f"{place}: expected a vocabulary with the {role} token {token}, it is not there. Pretraining needs "
                f"{', '.join(SPECIAL.values())}; bertfast vocab makes a vocabulary that has them."
            )
    tokens = [""] * (max(ids.values()) + 1)
    for token, index in ids.items():
        tokens[index] = token
    special = {role: ids[token] for role, token in names.items()}
    never = [i for i, t in enumerate(tokens) if not t or re.fullmatch(r"\[unused\d+\]", t)]
    return Vocabulary(tokens, special, sorted({*never, *special.values()}))


def copy_tokenizer(source: Path, target: Path, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """The files of a tokenizer, into the folder `target`, which is made; what `source` lacks of them is written."""
    target.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        if (source / file).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / file, target / file)
    if not (target / "tokenizer.json").is_file():
        _write(target / "tokenizer.json", tokenizer.backend.to_str(pretty=True))
    if not (target / "vocab.txt").is_file():
        _write(target / "vocab.txt", "".join(f"{token}\n" for token in tokens))
    if not (target / "tokenizer_config.json").is_file():
        _write(target / "tokenizer_config.json", "{}\n")


def train_vocabulary(
    read: Callable[[], Iterable[str]],
    folder: str | os.PathLike[str],
    *,
    size: int = 30522,
    cased: bool = False,
    chinese: bool = False,
    unused: int = 0,
) -> int:
    """Make a WordPiece vocabulary of texts and write its tokenizer into a folder: tokenizer.json, vocab.txt and
    tokenizer_config.json, which `Tokenizer.from_folder` and transformers' BertTokenizerFast read.

    The same texts give the same vocabulary, in any order.

    Args:
        read: gives the texts, such as `readers.texts`; it is called twice.
        size: the most tokens. BERT's order: [PAD] [UNK] [CLS] [SEP] [MASK], [unusedN], characters, then the rest by
            how often they join.
        cased: keep capitals and accents; else both are taken away, from every text.
        chinese: keep as many characters as fit; else the 1000 most frequent, as BERT does for alphabets. A Chinese
            character is always a token of its own.
        unused: how many tokens [unusedN] to keep free.

    Returns:
        how many tokens the vocabulary has: fewer than `size` where the texts give no more.

    Raises:
        ArgumentError: size is too small for the special tokens and a character; there is no text.
    """
    first = [*SPECIAL.values(), *(f"[unused{n}]" for n in range(unused))]
    if size <= len(first):
        raise ArgumentError("size", f"more than {len(first)}, the special tokens", str(size))
    library = require("tokenizers", "Making a vocabulary")
    counts: Counter[str] = Counter()
    normalize = _tokenizer(library, {}, cased).normalizer.normalize_str

    def counted() -> Iterator[str]:
        for text in read():
            counts.update(normalize(text))
            yield text

    # Without merges, this gives the characters that go on with a word. Given beforehand, in order, they have the same
    # numbers in every run, and so pairs that are equally frequent join in the same order.
    found = _train(library, cased, counted(), len(first), first, None)
    most = size - len(first) if chinese else _ALPHABET
    frequent = sorted(counts, key=lambda c: (-counts[c], c))
    alphabet = sorted([c for c in frequent if c in found][:most])
    if not alphabet:
        raise ArgumentError("INPUT", "texts to make a vocabulary of", "no word")
    pieces = [PIECE + c for c in alphabet if PIECE + c in found]
    ids = _train(library, cased, read(), size, [*first, *pieces], alphabet)
    tokens = sorted(ids, key=ids.get)
    backend = _tokenizer(library, {token: n for n, token in enumerate(tokens)}, cased)
    backend.add_special_tokens(list(SPECIAL.values()))
    backend.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    _write_tokenizer(Path(folder), backend, tokens, cased)
    return len(tokens)


def _tokenizer(library: Any, ids: dict[str, int], cased: bool) -> Any:
    backend = library.Tokenizer(library.models.WordPiece(ids, unk_token=SPECIAL["unk"]))
    backend.normalizer = library.normalizers.BertNormalizer(lowercase=not cased)
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.decoder = library.decoders.WordPiece(prefix=PIECE)
    return backend


def _train(
    library: Any,
    cased: bool,
    texts: Iterable[str],
    size: int,
    first: list[str],
    alphabet: list[str] | None,
) -> dict[str, int]:
    """The ids of a vocabulary that begins with `first` and has no character outside `alphabet`."""
    backend = _tokenizer(library, {}, cased)
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=first,
        initial_alphabet=alphabet or [],
        limit_alphabet=sys.maxunicode if alphabet is None else len(alphabet),
        continuing_subword_prefix=PIECE,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend.get_vocab()


def _write_tokenizer(folder: Path, backend: Any, tokens: list[str], cased: bool) -> None:
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": not cased,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": _LENGTH,
        **{f"{role}_token": token for role, token in SPECIAL.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.txt", "".join(f"{token}\n" for token in tokens))
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")
    _write(folder / "tokenizer.json", backend.to_str(pretty=True))


def _write(path: Path, text: str) -> None:
    with atomic_write(path, "w") as handle:
        handle.write(text)


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
