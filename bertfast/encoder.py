"""Texts in, vectors out: tokenize, encode real tokens in packed batches, pool."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch

from . import dispatch
from .checkpoint.hub import require, resolve
from .checkpoint.load import load_bert
from .core.batch import pack_rows
from .core.encode import encode_packed
from .core.weights import BertWeights, prepack_layers
from .data.pooling import Recipe, check_pooling, pool, read_recipe
from .data.tokenizer import Tokenizer, check_texts
from .errors import ArgumentError, UnsupportedError

BATCH_TOKENS = 4096
WINDOW_TEXTS = 4096  # texts that are sorted by length together
_MODEL_FILES = ("*.json", "vocab.txt", "model*.safetensors", "pytorch_model*.bin")

logger = logging.getLogger("bertfast")


class Encoder:
    """A BERT encoder with its tokenizer and its way of pooling: what turns texts into vectors.

    A vector depends on its text alone, not on the texts that it was encoded with.

    Args:
        model: a checkpoint's weights (`checkpoint.load.load_bert`); or a bertfast `BertModel`, which is put into eval
            mode, and whose weights are read anew for each batch.
        tokenizer: a `bertfast.data.tokenizer.Tokenizer`.
        recipe: pooling, normalising, prompt and longest text; default: mean pooling, not normalised.
        batch_invariant: keep each operation to one form whatever the batch's size, as `dispatch.fixed_order` does.

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
        batch_invariant: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Encoder:
        """Load a checkpoint of transformers or of sentence-transformers.

        Args:
            path_or_hub_id: a directory, or a model id on the Hugging Face hub.
            device: where the model runs; default the CPU.
            dtype: float32, bfloat16, float16 or float64, as a torch.dtype or by name; default: the
                checkpoint's.
            batch_invariant: as `BertModel` takes it.
            revision, token, cache_dir, local_files_only: as in `bertfast.checkpoint.resolve`.

        Raises:
            CheckpointError, ConfigError: the checkpoint is missing, incomplete or corrupt.
            UnsupportedError: it pools in a way, or has a module, that bertfast does not compute.
        """
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
        tokenizer = Tokenizer.from_folder(folder)
        weights = load_bert(folder, dtype, device)._replace(pooler=None)
        prepack_layers(weights.layers)
        return cls(weights, tokenizer, recipe, batch_invariant)

    @property
    def weights(self) -> BertWeights:
        """What the core reads now. Raises UnsupportedError where only transformers' own forward fits the model."""
        if isinstance(self.model, BertWeights):
            return self.model
        view = self.model.view()
        if isinstance(view, str):
            advice = "Use sentence-transformers: bertfast.optimize(SentenceTransformer(path))."
            raise UnsupportedError(
                f"Encoder: only transformers' own forward runs, as {view}. {advice}"
            )
        return view

    @property
    def dimension(self) -> int:
        """The length H of a vector."""
        return self.weights.hidden_size

    def encode(
        self,
        texts: str | Iterable[str],
        batch_tokens: int = BATCH_TOKENS,
        pooling: str | None = None,
        normalize: bool | None = None,
        progress: bool | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Vectors of texts.

        Args:
            texts: any iterable of strings, generators too; or one string.
            batch_tokens: the most real tokens that go through the model at a time (a longer text
                goes alone).
            pooling: "cls", "mean" or "max"; default: as the checkpoint says, else "mean".
            normalize: scale vectors to length 1; default: as the checkpoint says, else not.
            progress: show a bar; default: when standard error is a terminal.
            max_length: the most tokens of a text; default `self.max_length`. How many texts were
                cut is logged, once a call.
            prompt: put before every text; default: the checkpoint's default prompt, if any.

        Returns:
            float32 [N,H] in the order of the texts; [H] for one string.

        Raises:
            ArgumentError: a text is not a string (its index is named), or another argument is
                wrong.
        """
        single = isinstance(texts, str)
        blocks = self.encode_iter(
            [texts] if single else texts,
            batch_tokens,
            pooling,
            normalize,
            bool(progress) if single else progress,
            max_length,
            prompt,
        )
        vectors = [vectors for _, vectors in blocks]
        if single:
            return vectors[0][0]
        if len(vectors) == 1:
            return vectors[0]
        return np.concatenate([np.empty((0, self.dimension), np.float32), *vectors])

    def encode_iter(
        self,
        texts: Iterable[str],
        batch_tokens: int = BATCH_TOKENS,
        pooling: str | None = None,
        normalize: bool | None = None,
        progress: bool | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """As `encode`, a window at a time: yields some texts and their vectors [n,H], in order.

        No more than a window of `WINDOW_TEXTS` is held, however many texts there are. Arguments
        are checked at once, texts as they come.
        """
        pooling = self.recipe.pooling if pooling is None else pooling
        normalize = self.recipe.normalize if normalize is None else normalize
        prompt = self.recipe.prompt if prompt is None else prompt
        max_length = self.max_length if max_length is None else max_length
        check_pooling(pooling)
        self._check_counts(batch_tokens, max_length)
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise ArgumentError("texts", "an iterable of strings", type(texts).__name__)
        if not isinstance(prompt, str):
            raise ArgumentError("prompt", "a string", type(prompt).__name__)
        total = len(texts) if hasattr(texts, "__len__") else None
        return self._windows(
            iter(texts), batch_tokens, pooling, normalize, progress, max_length, prompt, total
        )

    def _check_counts(self, batch_tokens: Any, max_length: Any) -> None:
        least, limit = self.tokenizer.special_tokens + 1, self.weights.max_positions
        for name, value, low, high in (
            ("batch_tokens", batch_tokens, 1, None),
            ("max_length", max_length, least, limit),
        ):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < low or (high is not None and value > high):
                span = f"at least {low}" if high is None else f"from {low} to {high}"
                raise ArgumentError(name, f"an integer {span}", repr(value))

    def _windows(
        self, texts, batch_tokens, pooling, normalize, progress, max_length, prompt, total
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        count = cut = 0
        with _bar(progress, total) as advance:
            while window := list(islice(texts, WINDOW_TEXTS)):
                check_texts(window, count)
                rows, cut_here = self.tokenizer(self._prepare(window, prompt), max_length)
                vectors = np.empty((len(rows), self.dimension), np.float32)
                for batch in batches([len(row) for row in rows], batch_tokens):
                    ids = [rows[i] for i in batch]
                    vectors[batch] = self._run(ids, pooling, normalize)
                    advance(len(batch))
                count, cut = count + len(rows), cut + cut_here
                yield window, vectors
        if cut:
            logger.warning(
                "cut to %d tokens: %d of %d texts were longer",
                *(max_length, cut, count),
            )

    def _prepare(self, texts: list[str], prompt: str) -> list[str]:
        if prompt:
            texts = [prompt + text for text in texts]
        return [text.lower() for text in texts] if self.recipe.lower_case else texts

    @torch.inference_mode()
    def _run(self, ids: Sequence[list[int]], pooling: str, normalize: bool) -> np.ndarray:
        """Vectors float32 [B,H] of some rows of ids, in one packed batch."""
        if not any(ids):
            return np.zeros((len(ids), self.dimension), np.float32)
        order = dispatch.batch_invariant() if self.batch_invariant else nullcontext()
        weights = self.weights
        with order:
            states = encode_packed(weights, pack_rows(ids, weights.device))  # [T,H]
        return pool(states, [len(row) for row in ids], pooling, normalize).float().cpu().numpy()


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
def _bar(progress: bool | None, total: int | None):
    """Yields a function that a number of finished texts is told to."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda count: None
        return
    tqdm = require("tqdm", "A progress bar")
    with tqdm.tqdm(total=total, unit=" texts", desc="encode", dynamic_ncols=True) as bar:
        yield bar.update
