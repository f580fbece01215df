"""Text to token ids: the `tokenizers` library, set up as transformers' `BertTokenizer` sets it up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._files import read_json
from ..checkpoint.hub import require
from ..errors import ArgumentError, CheckpointError

_BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast")
_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


class Tokenizer:
    """Token ids of texts, without padding: [CLS] text [SEP].

    It holds no state between calls, so threads may share one.

    Args:
        backend: a `tokenizers.Tokenizer`; its own truncation and padding are switched off.
        max_length: the most tokens that the checkpoint's tokenizer_config.json allows a text, [CLS]
            and [SEP] counted; None where it does not say.
    """

    def __init__(self, backend: Any, max_length: int | None = None):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.max_length = max_length
        self._prefix, self._suffix = _frame(backend)
        # The fast variant leaves character offsets out; releases before 0.20 lack it.
        self._encode = getattr(backend, "encode_batch_fast", backend.encode_batch)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a checkpoint directory: its tokenizer.json, else its vocab.txt.

        As in transformers, do_lower_case (default true), strip_accents (as do_lower_case) and
        tokenize_chinese_chars (true) of tokenizer_config.json hold for both.

        Raises:
            CheckpointError: neither file is there, or one is unreadable, corrupt or lacks a
                special token.
            UnsupportedError: the package tokenizers is not installed.
        """
        folder = Path(folder)
        tokenizers = require("tokenizers", "Reading text")
        config = _optional(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            backend = _from_json(tokenizers, folder / "tokenizer.json", config)
        elif (folder / "vocab.txt").is_file():
            special = _special_tokens(_optional(folder / "special_tokens_map.json"), config)
            backend = _from_vocab(tokenizers, folder / "vocab.txt", config, special)
            _add_tokens(backend, folder / "added_tokens.json")
        else:
            raise CheckpointError(f"{folder}: expected tokenizer.json or vocab.txt, found neither.")
        longest = config.get("model_max_length")
        usable = isinstance(longest, int | float) and 0 < longest < 2**31  # 10^30 means: no limit
        return cls(backend, int(longest) if usable else None)

    @property
    def special_tokens(self) -> int:
        """How many tokens are put around every text ([CLS] and [SEP]: 2)."""
        return len(self._prefix) + len(self._suffix)

    def __len__(self) -> int:
        """The size of the vocabulary, added tokens counted."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def __call__(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[list[list[int]], int]:
        """Ids of each text, and how many texts were cut.

        Args:
            texts: the texts; an empty one gives [CLS] [SEP].
            max_length: the most tokens of a text, special ones counted; longer texts lose their
                end, never their last special token. None: no limit.

        Raises:
            ArgumentError: a text is not a string, or holds half of a surrogate pair (its index
                is named); max_length leaves no room for a token.
        """
        room = None if max_length is None else max_length - self.special_tokens
        if room is not None and room < 1:
            expected = f"at least {self.special_tokens + 1}"
            raise ArgumentError("max_length", expected, str(max_length))
        try:
            encodings = self._encode(list(texts), add_special_tokens=False)
        except (TypeError, ValueError):
            check_texts(texts)
            raise
        rows = [encoding.ids for encoding in encodings]
        cut = 0 if room is None else sum(len(row) > room for row in rows)
        return [[*self._prefix, *row[:room], *self._suffix] for row in rows], cut


def check_texts(texts: Sequence[Any], start: int = 0) -> None:
    """Raise ArgumentError for the first that is no Unicode string; `start` is the index of texts[0]."""
    for index, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise ArgumentError(f"texts[{index}]", "a string", type(text).__name__)
        if not is_unicode(text):
            raise ArgumentError(
                f"texts[{index}]", "Unicode text", "one with half of a surrogate pair"
            )


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded: half of a surrogate pair, as JSON may hold, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _frame(backend: Any) -> tuple[list[int], list[int]]:
    """The special ids before and after a text, as the tokenizer's template has them."""
    encoding = backend.encode("a")
    inner = len(backend.encode("a", add_special_tokens=False).ids)
    specials = encoding.special_tokens_mask
    before = specials.index(0) if 0 in specials else len(specials)
    return encoding.ids[:before], encoding.ids[before + inner :]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, CheckpointError) if path.is_file() else {}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _special_tokens(*sources: dict[str, Any]) -> dict[str, str]:
    """The special tokens by their role; later sources win, absent ones are BERT's."""
    tokens = dict(_SPECIAL)
    for source in sources:
        found = {name: _content(source.get(name)) for name in _SPECIAL}
        tokens.update({name: token for name, token in found.items() if isinstance(token, str)})
    return tokens


def _normalizer(tokenizers: Any, config: dict[str, Any]) -> Any:
    return tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )


def _from_json(tokenizers: Any, path: Path, config: dict[str, Any]) -> Any:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{path}: expected a tokenizer, got a corrupt file ({error})."
        ) from error
    known = isinstance(backend.normalizer, tokenizers.normalizers.BertNormalizer)
    if known and config.get("tokenizer_class") in _BERT_CLASSES:
        backend.normalizer = _normalizer(tokenizers, config)  # as transformers' BertTokenizer does
    return backend


def _from_vocab(
    tokenizers: Any, path: Path, config: dict[str, Any], special: dict[str, str]
) -> Any:
    vocab = read_vocab(path)
    for token in (special["unk_token"], special["cls_token"], special["sep_token"]):
        if token not in vocab:
            raise CheckpointError(f"{path}: expected the token {token}, it is not there.")
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocab, unk_token=special["unk_token"])
    )
    backend.normalizer = _normalizer(tokenizers, config)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(
        (special["sep_token"], vocab[special["sep_token"]]),
        (special["cls_token"], vocab[special["cls_token"]]),
    )
    backend.add_special_tokens([token for token in special.values() if token in vocab])
    return backend


def read_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """token -> id of a vocab.txt, one token a line; of equal lines the last one counts.

    Raises:
        CheckpointError: the file is unreadable, not UTF-8 or empty.
    """
    try:
        with open(path, encoding="utf-8") as file:
            vocab = {line.rstrip("\n"): index for index, line in enumerate(file)}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected a vocabulary in UTF-8 ({error}).") from error
    if not vocab:
        raise CheckpointError(f"{path}: expected a token a line, got an empty file.")
    return vocab


def _add_tokens(backend: Any, path: Path) -> None:
    """Tokens that were added after training, from transformers' added_tokens.json: token -> id."""
    added = _optional(path)
    for token, index in sorted(added.items(), key=lambda item: str(item[1])):
        backend.add_tokens([token])
        if backend.token_to_id(token) != index:
            raise CheckpointError(
                f"{path}: expected ids that continue the vocabulary, got {index!r} for {token!r}."
            )
