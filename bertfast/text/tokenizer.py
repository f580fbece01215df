"""Text to token ids: tokenizer.json by the library `tokenizers`, what only transformers knows by `AutoTokenizer`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .._files import read_json
from ..checkpoint.hub import require
from ..errors import ArgumentError, CheckpointError, UnsupportedError

_BERT = ("BertTokenizer", "BertTokenizerFast", None)  # rebuilt by transformers from their settings
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # tokenizer.json as it stands
_SIDES = ("right", "left")


class Tokenizer:
    """Token ids of texts, without padding: [CLS] text [SEP].

    It holds no state between calls, so threads may share one.

    Args:
        backend: a `tokenizers.Tokenizer`, whose own truncation and padding are switched off; or what has its methods.
        max_length: the most tokens that the checkpoint's tokenizer_config.json allows a text, [CLS]
            and [SEP] counted; None where it does not say.
        truncation_side: "right" or "left", the end that longer texts lose.
    """

    def __init__(self, backend: Any, max_length: int | None = None, truncation_side: str = "right"):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.max_length = max_length
        self.truncation_side = truncation_side
        # The fast variant leaves character offsets out; releases before 0.20 lack it.
        self._encode = getattr(backend, "encode_batch_fast", backend.encode_batch)
        self._prefix, self._suffix = self._frame()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], lower_case: bool = False) -> Tokenizer:
        """The tokenizer of a checkpoint directory, as transformers' AutoTokenizer reads it.

        transformers is imported only where tokenizer.json is missing, or does not say all that the other files say.

        Args:
            lower_case: lowercase texts first, special tokens excepted, as sentence-transformers' do_lower_case does.

        Raises:
            CheckpointError: there is no tokenizer, or a file is unreadable, corrupt or lacks a special token.
            UnsupportedError: a package that it needs is not installed; or it cannot do what is asked for.
        """
        folder = Path(folder)
        tokenizers = require("tokenizers", "Reading text")
        config = _optional(folder / "tokenizer_config.json")
        backend = None
        if (folder / "tokenizer.json").is_file():
            backend = _from_json(tokenizers, folder, config)
        if backend is None:
            backend = _by_transformers(folder, config)
        if lower_case:
            _lower_case(tokenizers, backend, folder)
        longest = config.get("model_max_length", config.get("max_len"))
        usable = isinstance(longest, int | float) and 0 < longest < 2**31  # 10^30 means: no limit
        side = config.get("truncation_side") or (backend.truncation or {}).get("direction", "right")
        if side not in _SIDES:
            raise CheckpointError(
                f"{folder}: truncation_side: expected right or left, got {side!r}."
            )
        return cls(backend, int(longest) if usable else None, side)

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
            max_length: the most tokens of a text, special ones counted; longer texts lose their end (their start
                where truncation_side is left), never their special tokens. None: no limit.

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
        kept = slice(room) if self.truncation_side == "right" or not cut else slice(-room, None)
        return [[*self._prefix, *row[kept], *self._suffix] for row in rows], cut

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without special tokens, not cut. Raises ArgumentError for what is no Unicode text."""
        check_texts(texts)
        return [encoding.ids for encoding in self._encode(list(texts), add_special_tokens=False)]

    def encodings(self, texts: Sequence[str] | Sequence[Sequence[str]], words: bool = False) -> Any:
        """What `tokenizers` says of each text: `ids`, `offsets` in characters and, with `words`, where each text is a
        list of words, `word_ids`; without special tokens.

        Raises:
            ArgumentError: a text is no Unicode text.
            UnsupportedError: the tokenizer is written in Python, and does not tell.
        """
        if isinstance(self.backend, _Python):
            raise UnsupportedError(
                "a tokenizer written in Python does not tell where tokens stand."
            )
        for index, text in enumerate(texts):
            check_texts(["".join(text)] if words else [text], index)
        options = {"is_pretokenized": words, "add_special_tokens": False}
        return self.backend.encode_batch(list(texts), **options)

    @property
    def cls_sep(self) -> tuple[int, int]:
        """The ids of [CLS] and [SEP]. Raises UnsupportedError where other tokens are put around a text."""
        if len(self._prefix) != 1 or len(self._suffix) != 1:
            raise UnsupportedError("the tokenizer does not write a text as [CLS] text [SEP].")
        return self._prefix[0], self._suffix[0]

    def prompt_tokens(self, prompt: str, max_length: int | None = None) -> int:
        """How many tokens a prompt takes at the start of a text, [CLS] counted."""
        (row,), _ = self([prompt], max_length)
        return len(row) - len(self._suffix)

    def check_ids(self, rows: Sequence[Sequence[int]], table: int, start: int = 0) -> None:
        """Raise ArgumentError for the first row with an id that a table of words lacks; `start` is its index."""
        for index, row in enumerate(rows, start):
            if row and max(row) >= table:
                raise ArgumentError(
                    f"texts[{index}]",
                    f"tokens that the model has ({table})",
                    self._named(next(token for token in row if token >= table)),
                    "The tokenizer has more tokens than the model's word table: it is another model's, or tokens were "
                    "added without model.resize_token_embeddings(len(tokenizer)).",
                )

    def _named(self, token: int) -> str:
        # those that were added are spelled as they were
        added = getattr(self.backend, "get_added_tokens_decoder", dict)()
        word = added[token].content if token in added else self.backend.id_to_token(token)
        return f"{word!r}, number {token}"

    def _frame(self) -> tuple[list[int], list[int]]:
        """The special ids before and after a text."""
        whole, inner = (
            self._encode(["a"], add_special_tokens=special)[0].ids for special in (True, False)
        )
        before = next(i for i in range(len(whole) + 1) if whole[i : i + len(inner)] == inner)
        return whole[:before], whole[before + len(inner) :]


def check_texts(texts: Sequence[Any], start: int = 0) -> None:
    """Raise ArgumentError for the first that is no Unicode string; `start` is the index of texts[0]."""
    for index, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise ArgumentError(f"texts[{index}]", "a string", type(text).__name__)
        if not is_unicode(text):
            got = "one with half of a surrogate pair"
            raise ArgumentError(f"texts[{index}]", "Unicode text", got)


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded: half of a surrogate pair, as JSON may hold, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, CheckpointError) if path.is_file() else {}


# tokenizer.json


def _from_json(tokenizers: Any, folder: Path, config: dict[str, Any]) -> Any | None:
    """The tokenizer of tokenizer.json; None where the files beside it say more than transformers alone can add."""
    path = folder / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{path}: expected a tokenizer, got a corrupt file ({error})."
        ) from error
    kind = _class_name(folder, config)
    special = config.get("split_special_tokens") or "auto_map" in config
    if special or kind not in (*_BERT, *_PLAIN) or not _holds_all(backend, folder, config):
        return None
    if kind in _BERT:
        parts = (backend.model, backend.normalizer, backend.pre_tokenizer)
        kinds = (
            tokenizers.models.WordPiece,
            tokenizers.normalizers.BertNormalizer,
            tokenizers.pre_tokenizers.BertPreTokenizer,
        )
        if not all(map(isinstance, parts, kinds)):
            return None
        backend.normalizer = tokenizers.normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
    return backend


def _class_name(folder: Path, config: dict[str, Any]) -> str | None:
    return config.get("tokenizer_class") or _optional(folder / "config.json").get("tokenizer_class")


def _holds_all(backend: Any, folder: Path, config: dict[str, Any]) -> bool:
    """Whether tokenizer.json has every token that the other files name, as they name it."""
    added = backend.get_added_tokens_decoder()
    listed = config.get("added_tokens_decoder")
    if listed is not None:
        states = {str(index): token.__getstate__() for index, token in added.items()}
        if states != listed:
            return False
    names = {token.content for token in added.values()}
    named = _named(_optional(folder / "special_tokens_map.json")) | _named(config)
    numbered = _numbered(folder, config)
    return named <= names and all(str(backend.token_to_id(t)) == str(i) for _, t, i in numbered)


def _named(source: dict[str, Any]) -> set[str]:
    """The special tokens that special_tokens_map.json or tokenizer_config.json names."""
    found = [value for key, value in source.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = source.get(key) or []
        found += more.values() if isinstance(more, dict) else more
    contents = (token.get("content") if isinstance(token, dict) else token for token in found)
    return {token for token in contents if isinstance(token, str)}


def _numbered(folder: Path, config: dict[str, Any]) -> Iterator[tuple[Path, str, Any]]:
    """(file, token, id) of each token that was added after training."""
    for token, index in _optional(folder / "added_tokens.json").items():
        yield folder / "added_tokens.json", token, index
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        content = token.get("content") if isinstance(token, dict) else token
        yield folder / "tokenizer_config.json", content, index


def _lower_case(tokenizers: Any, backend: Any, folder: Path) -> None:
    """Lowercase what is no special token before anything else is done to it."""
    if isinstance(backend, _Python):
        raise UnsupportedError(f"{folder}: do_lower_case with a tokenizer written in Python.")
    own = [] if backend.normalizer is None else [backend.normalizer]
    lower = tokenizers.normalizers.Lowercase()
    backend.normalizer = tokenizers.normalizers.Sequence([lower, *own])


# Everything else


class _Ids(NamedTuple):
    ids: list[int]


class _Python:
    """A tokenizer of transformers that is written in Python, with the methods of `tokenizers` that are used here."""

    truncation = None

    def __init__(self, theirs: Any):
        self._theirs = theirs
        self.token_to_id = theirs.get_vocab().get
        self.id_to_token = theirs.convert_ids_to_tokens

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[_Ids]:
        if not texts:
            return []
        rows = self._theirs(texts, add_special_tokens=add_special_tokens, verbose=False)
        return [_Ids(row) for row in rows["input_ids"]]

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return len(self._theirs)

    def no_truncation(self) -> None:
        pass  # it is asked for call by call

    no_padding = no_truncation


def _by_transformers(folder: Path, config: dict[str, Any]) -> Any:
    """What transformers' AutoTokenizer makes of the files."""
    files = ("tokenizer.json", "vocab.txt", "spiece.model")
    if not any((folder / name).is_file() for name in files):
        raise CheckpointError(f"{folder}: expected tokenizer.json or vocab.txt, found neither.")
    vocabulary = _vocabulary(folder / "vocab.txt") if (folder / "vocab.txt").is_file() else None
    purpose = f"The tokenizer of {folder}, which is no tokenizer.json,"
    transformers = require("transformers", purpose)
    kind = _class_name(folder, config)
    if "auto_map" in config or not (kind is None or hasattr(transformers, kind)):
        raise UnsupportedError(
            f"{folder}: the tokenizer {kind} is unknown to transformers; a checkpoint's own code is not run."
        )
    loader = transformers.AutoTokenizer if kind else transformers.BertTokenizerFast
    try:
        theirs = loader.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise UnsupportedError(f"{folder}: {error}") from error
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(
            f"{folder}: expected a tokenizer that transformers can read ({error})."
        ) from error
    added = {str(token): index for index, token in theirs.added_tokens_decoder.items()}
    numbered = list(_numbered(folder, config))
    for path, token, index in numbered:
        if str(added.get(token)) != str(index):
            raise CheckpointError(
                f"{path}: expected ids that continue the vocabulary, got {index!r} for {token!r}."
            )
    if vocabulary is not None:
        known = vocabulary | {token for _, token, _ in numbered}
        for token in (theirs.unk_token, theirs.cls_token, theirs.sep_token):
            # transformers adds what is missing, past the end of the model's word table
            if token is not None and token not in known:
                raise CheckpointError(
                    f"{folder / 'vocab.txt'}: expected the token {token}, it is not there."
                )
    return theirs.backend_tokenizer if theirs.is_fast else _Python(theirs)


def _vocabulary(path: Path) -> set[str]:
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected a vocabulary in UTF-8 ({error}).") from error
    if tokens == [""]:
        raise CheckpointError(f"{path}: expected a token a line, got an empty file.")
    return set(tokens)
