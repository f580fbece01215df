"""Texts in, vectors out: tokenize, encode real tokens in packed batches, pool."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .. import dispatch
from ..checkpoint.hub import require, resolve
from ..checkpoint.load import load_bert, read_config
from ..checkpoint.quantized import is_quantized
from ..core.batch import pack_rows
from ..core.encode import encode_packed
from ..core.quantize import quantized_view
from ..core.weights import BertWeights, prepack_layers
from ..errors import ArgumentError, UnsupportedError
from ..text.pooling import check_pooling, pool
from ..text.recipe import ADVICE, Recipe, read_recipe
from ..text.tokenizer import Tokenizer, check_texts
from .devices import default_device

BATCH_TOKENS = 4096
WINDOW_TEXTS = 4096  # texts that are sorted by length together
_MODEL_FILES = ("*.json", "vocab.txt", "spiece.model", "model*.safetensors", "pytorch_model*.bin")

logger = logging.getLogger("bertfast")


class _Settings(NamedTuple):
    """What a call of `encode` asks for, defaults filled in; as `Encoder.encode` has them.

    Fields:
        normalize: None where the checkpoint's own scaling holds, which comes before a vector is cut.
        skip: tokens at the start of a text that take no part in pooling.
        table: how many tokens the model has, where its word table tells.
    """

    batch_tokens: int
    pooling: str
    normalize: bool | None
    max_length: int
    prompt: str
    skip: int
    truncate_dim: int | None
    progress: bool | None
    table: int | None


class _Window(NamedTuple):
    """Some texts, their ids, and how many were cut."""

    texts: list[str]
    rows: list[list[int]]
    cut: int


class Encoder:
    """A BERT encoder with its tokenizer and its way of pooling: what turns texts into vectors.

    A vector depends on its text alone, not on the texts that it was encoded with.

    Args:
        model: a checkpoint's weights (`checkpoint.load.load_bert`); or a bertfast `BertModel`, which is put into eval
            mode, and whose weights are read anew for each batch.
        tokenizer: a `bertfast.text.tokenizer.Tokenizer`.
        recipe: pooling, normalising, prompts and longest text; default: mean pooling, not normalised.
        batch_invariant: on a GPU, keep each operation to one backend and product, as `bertfast.batch_invariant` does.

    Attributes:
        max_length: the most tokens of a text, [CLS] and [SEP] counted; what is longer is cut.
    """

    def __init__(
        self,
        model: BertWeights | Any,
        tokenizer: Tokenizer,
        recipe: Recipe | None = None,
        batch_invariant: bool = False,
    ):
        self.model = model if isinstance(model, BertWeights) else model.eval()
        self.tokenizer = tokenizer
        self.recipe = recipe or Recipe()
        self.batch_invariant = batch_invariant
        limit = self.weights.max_positions
        said = self.recipe.max_length or tokenizer.max_length
        self.max_length = min(limit, said or limit)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        quantize: str | None = None,
        batch_invariant: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Encoder:
        """Load a checkpoint of transformers or of sentence-transformers.

        Args:
            path_or_hub_id: a directory, or a model id on the Hugging Face hub.
            device: where the model runs; default: a CUDA GPU if torch sees one that a backend serves, else the CPU.
            dtype: float32, bfloat16, float16 or float64, as a torch.dtype or by name; default: the checkpoint's.
            quantize: "int8" keeps the layers' weights in int8 (`BertModel.quantize`), on a CPU; a checkpoint that was
                saved so needs no asking.
            batch_invariant: as `Encoder` takes it.
            revision, token, cache_dir, local_files_only: as in `bertfast.checkpoint.resolve`.

        Raises:
            CheckpointError, ConfigError: the checkpoint is missing, incomplete or corrupt.
            UnsupportedError: it pools in a way, or has a module or a setting, that bertfast does not compute.
        """
        if quantize not in (None, "int8"):
            raise ArgumentError("quantize", "None or 'int8'", repr(quantize))
        hub = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        folder = resolve(path_or_hub_id, **hub)
        recipe = read_recipe(folder)
        if recipe.transformer and not (folder / recipe.transformer / "config.json").is_file():
            patterns = [f"{recipe.transformer}/{name}" for name in _MODEL_FILES]
            folder = resolve(path_or_hub_id, allow_patterns=patterns, **hub)
        folder = folder / recipe.transformer
        tokenizer = Tokenizer.from_folder(folder, recipe.lower_case)
        already = is_quantized(read_config(folder))
        device = device or ("cpu" if quantize or already else default_device())
        weights = load_bert(folder, dtype, device)._replace(pooler=None)
        if quantize and not already:
            weights = quantized_view(weights)
        elif not already:
            prepack_layers(weights.layers)
        return cls(weights, tokenizer, recipe, batch_invariant)

    @property
    def weights(self) -> BertWeights:
        """What the core reads now. Raises UnsupportedError where only transformers' own forward fits the model."""
        if isinstance(self.model, BertWeights):
            return self.model
        view = self.model.view()
        if isinstance(view, str):
            said = f"Encoder: only transformers' own forward runs, as {view}. {ADVICE}"
            raise UnsupportedError(said)
        return view

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.weights.device

    @property
    def dimension(self) -> int:
        """The length of a vector: H, or the checkpoint's truncate_dim."""
        hidden = self.weights.hidden_size
        return min(hidden, self.recipe.truncate_dim or hidden)

    def encode(
        self,
        texts: str | Iterable[str],
        batch_tokens: int = BATCH_TOKENS,
        pooling: str | None = None,
        normalize: bool | None = None,
        progress: bool | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
    ) -> np.ndarray:
        """Vectors of texts.

        Args:
            texts: any iterable of strings, generators too; or one string.
            batch_tokens: the most real tokens that go through the model at a time (a longer text goes alone).
            pooling: "cls", "mean" or "max"; default: as the checkpoint says, else "mean".
            normalize: scale vectors to length 1, after they are cut; default: as the checkpoint says, before they
                are cut, else not.
            progress: show a bar; default: when standard error is a terminal.
            max_length: the most tokens of a text; default `self.max_length`. How many texts were
                cut is logged, once a call.
            prompt: put before every text; default: the checkpoint's default prompt, if any. Its tokens are left out
                of pooling where the checkpoint says so (include_prompt).
            prompt_name: in the place of `prompt`, the name of one of the checkpoint's prompts.
            truncate_dim: how many numbers of each vector are kept; default: as the checkpoint says, else all.

        Returns:
            float32 [N,H] in the order of the texts; [H] for one string. With truncate_dim that many, if fewer than H.

        Raises:
            ArgumentError: a text is not a string (its index is named), or has a token that the model lacks; or
                another argument is wrong.
        """
        single = isinstance(texts, str)
        blocks = self.encode_iter(
            [texts] if single else texts,
            batch_tokens=batch_tokens,
            pooling=pooling,
            normalize=normalize,
            progress=bool(progress) if single else progress,
            max_length=max_length,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
        )
        vectors = [vectors for _, vectors in blocks]
        if single:
            return vectors[0][0]
        if len(vectors) == 1:
            return vectors[0]
        width = min(self.weights.hidden_size, truncate_dim or self.dimension)
        return np.concatenate([np.empty((0, width), np.float32), *vectors])

    def encode_iter(
        self,
        texts: Iterable[str],
        batch_tokens: int = BATCH_TOKENS,
        pooling: str | None = None,
        normalize: bool | None = None,
        progress: bool | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """As `encode`, a window at a time: yields some texts and their vectors [n,H], in order.

        No more than a window of `WINDOW_TEXTS` is held (on a GPU two, as the next is tokenized meanwhile), however
        many texts there are. Arguments are checked at once, texts as they come.
        """
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise ArgumentError("texts", "an iterable of strings", type(texts).__name__)
        weights, least = self.weights, self.tokenizer.special_tokens + 1
        words = weights.embeddings.word
        prompt = self._prompt(prompt, prompt_name)
        max_length = self.max_length if max_length is None else max_length
        cut_to = self.recipe.truncate_dim if truncate_dim is None else truncate_dim
        check_count("batch_tokens", batch_tokens, 1)
        check_count("max_length", max_length, least, weights.max_positions)
        check_count("truncate_dim", 1 if cut_to is None else cut_to, 1)
        skips = prompt and not self.recipe.include_prompt
        settings = _Settings(
            batch_tokens=batch_tokens,
            pooling=self.recipe.pooling if pooling is None else pooling,
            normalize=normalize,
            max_length=max_length,
            prompt=prompt,
            skip=self.tokenizer.prompt_tokens(prompt, max_length) if skips else 0,
            truncate_dim=cut_to,
            progress=progress,
            table=len(words) if isinstance(words, torch.Tensor) else None,
        )
        check_pooling(settings.pooling)
        return self._blocks(texts, settings)

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if name is None:
            prompt = self.recipe.prompt if prompt is None else prompt
            if not isinstance(prompt, str):
                raise ArgumentError("prompt", "a string", type(prompt).__name__)
            return prompt
        if prompt is not None:
            raise ArgumentError("prompt_name", "none beside a prompt", repr(name))
        if not isinstance(name, str) or name not in self.recipe.prompts:
            names = ", ".join(self.recipe.prompts)
            raise ArgumentError("prompt_name", f"one of {names}", repr(name))
        return self.recipe.prompts[name]

    def _blocks(
        self, texts: Iterable[str], settings: _Settings
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        total = len(texts) if hasattr(texts, "__len__") else None
        done = cut = 0
        with _bar(settings.progress, total, self.device) as advance:
            for window in self._windows(iter(texts), settings):
                yield window.texts, self._vectors(window.rows, settings, advance)
                done, cut = done + len(window.texts), cut + window.cut
        if cut:
            said = "cut to %d tokens: %d of %d texts were longer"
            logger.warning(said, settings.max_length, cut, done)

    def _windows(self, texts: Iterator[str], settings: _Settings) -> Iterator[_Window]:
        """The texts with their ids, some at a time."""
        starts = count(0, WINDOW_TEXTS)
        windows = iter(lambda: list(islice(texts, WINDOW_TEXTS)), [])
        tokenize = partial(self._tokenize, settings)
        return (_ahead if overlaps(self.device) else map)(tokenize, windows, starts)

    def _tokenize(self, settings: _Settings, texts: list[str], start: int) -> _Window:
        check_texts(texts, start)
        prompt = settings.prompt
        prompted = [prompt + text for text in texts] if prompt else texts
        rows, cut = self.tokenizer(prompted, settings.max_length)
        if settings.table is not None:
            self.tokenizer.check_ids(rows, settings.table, start)
        return _Window(texts, rows, cut)

    @torch.inference_mode()
    def _vectors(
        self, rows: list[list[int]], settings: _Settings, advance: Callable[[int], Any]
    ) -> np.ndarray:
        """Vectors float32 [B,H] of rows of ids. A GPU is waited for once, in the end."""
        order, parts = [], []
        for batch in batches([len(row) for row in rows], settings.batch_tokens):
            order += batch
            parts.append(self._run([rows[i] for i in batch], settings))
            advance(len(batch))
        found = torch.cat(parts).cpu().numpy()
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    def _run(self, ids: Sequence[list[int]], settings: _Settings) -> torch.Tensor:
        """Vectors float32 [B,H] of some rows of ids, in one packed batch, on the model's device."""
        weights = self.weights
        if not any(ids):
            width = min(weights.hidden_size, settings.truncate_dim or weights.hidden_size)
            return torch.zeros(len(ids), width, device=weights.device)
        with dispatch.batch_invariant() if self.batch_invariant else nullcontext():
            states = encode_packed(weights, pack_rows(ids, weights.device))  # [T,H]
        scale = settings.normalize is None and self.recipe.normalize
        lengths = [len(row) for row in ids]
        vectors = pool(states, lengths, settings.pooling, scale, settings.skip)
        vectors = vectors[:, : settings.truncate_dim]
        return (F.normalize(vectors, dim=1) if settings.normalize else vectors).float()


def overlaps(device: torch.device) -> bool:
    """Whether the next texts are tokenized while these are computed. On a CPU both would share its cores."""
    return device.type != "cpu"


def _ahead(function: Callable[..., Any], *calls: Iterable[Any]) -> Iterator[Any]:
    """As `map`, with one call more in a thread while the caller works on a result."""
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for arguments in zip(*calls, strict=False):
            ready, waiting = waiting, thread.submit(function, *arguments)
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()


def check_count(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise ArgumentError for what is no integer from `low` to `high`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ArgumentError(name, f"an integer {span}", repr(value))


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences, longest first, in batches of at most `batch_tokens` tokens.

    A sequence that is longer than that goes alone. The longest come first, so that a batch that
    does not fit into memory is met at once.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    batch: list[int] = []
    tokens = 0
    for index in order:
        if batch and tokens + lengths[index] > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


@contextmanager
def _bar(progress: bool | None, total: int | None, device: torch.device):
    """Yields a function that a number of finished texts is told to."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda count: None
        return
    tqdm = require("tqdm", "A progress bar")
    name = f"encode on {device}"
    with tqdm.tqdm(total=total, unit=" texts", desc=name, dynamic_ncols=True) as bar:
        yield bar.update
