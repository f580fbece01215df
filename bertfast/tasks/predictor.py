"""Using a fine-tuned model: texts in, answers out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint.hub import resolve
from ..checkpoint.load import read_config
from ..errors import ArgumentError, UnsupportedError
from ..inference.devices import default_device
from ..inference.encoder import BATCH_TOKENS, batches, check_count
from ..text.tokenizer import Tokenizer
from .form import Columns, Form, load_form
from .kinds import KINDS, Kind
from .kinds.choice import is_choice
from .supervised import Supervised

WINDOW = 4096  # examples that are sorted by length together
_TASKS = {
    "BertForSequenceClassification": "single",
    "BertForMultipleChoice": "choice",
    "BertForTokenClassification": "tokens",
    "BertForQuestionAnswering": "qa",
}


class Predictor:
    """A model with its task. An answer depends on its text alone, not on the texts beside it.

    Args:
        model: one of `bertfast.models.heads`, in eval mode. kind: of its task.
    """

    def __init__(self, model: nn.Module, kind: Kind):
        self.model, self.kind = model, kind

    @property
    def form(self) -> Form:
        return self.kind.form

    def __call__(self, texts: Any, batch_tokens: int = BATCH_TOKENS) -> Any:
        """The answers to texts, in their order.

        Args:
            texts: an iterable; or one alone, whose answer is returned alone.
                single: strings; pair: (string, string); regression: either. choice: (text, choices).
                qa: (question, context). tokens: strings, or lists of words (one such list is taken for texts).
            batch_tokens: the most tokens that go through the model at a time (a longer sequence goes alone).

        Returns:
            a list of: single, pair: `Label`, or `Labels` of a model with several. regression: float. choice: `Chosen`.
            qa: `Found`. tokens: a list of `Entity`, or where labels are no entities `Tagged`.

        Raises:
            ArgumentError: a text is not of that form; its index is named.
        """
        check_count("batch_tokens", batch_tokens, 1)
        alone = isinstance(texts, str) or self._is_one(texts)
        found = list(self.iterate([texts] if alone else texts, batch_tokens))
        return found[0] if alone else found

    def iterate(self, texts: Iterable[Any], batch_tokens: int = BATCH_TOKENS) -> Iterator[Any]:
        """As a call, one answer after the other; no more than `WINDOW` texts are held."""
        rest = iter(texts)
        while some := list(islice(rest, WINDOW)):
            yield from self._kind(some).answers(some, self.found(some, batch_tokens))

    def found(self, texts: Sequence[Any], batch_tokens: int = BATCH_TOKENS) -> Any:
        """What the logits of some texts say, as `Kind.gather` gives it."""
        kind = self._kind(texts)
        sequences = kind.encode(texts)
        task = Supervised(kind, sequences)
        device = next(self.model.parameters()).device
        parts = [np.array(part) for part in batches(task.lengths(0).tolist(), batch_tokens)]
        self.model.eval()
        outputs, _ = task.outputs(self.model, parts, device)
        return kind.gather(sequences, [outputs[i] for i in range(len(outputs))])

    def _is_one(self, texts: Any) -> bool:
        """Whether this is one pair, question or choice; those are tuples of two."""
        if not isinstance(texts, tuple) or len(texts) != 2 or not isinstance(texts[0], str):
            return False
        return self.form.task in ("pair", "qa", "choice") or (
            self.form.task == "regression" and self.form.columns.text_pair is not None
        )

    def _kind(self, texts: Sequence[Any]) -> Kind:
        """The kind; of a choice whose model does not say among how many, by the first example."""
        if self.form.task != "choice" or self.form.labels:
            return self.kind
        first = texts[0]
        if not is_choice(first) or not first[1]:
            raise ArgumentError("texts[0]", "(text, choices)", f"{first!r:.60}")
        labels = tuple(str(i) for i in range(len(first[1])))
        return type(self.kind)(replace(self.form, labels=labels), self.kind.tokenizer)


def load(
    path_or_hub_id: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Predictor:
    """A fine-tuned model, ready to answer: `load(folder)(texts)`.

    A model that was not made by `bertfast finetune` is taken as its config says: labels by id2label, texts cut to the
    model's positions, probabilities as they come.

    Args:
        path_or_hub_id: a directory, or a model id on the Hugging Face hub.
        device: default: a CUDA GPU if torch sees one that a backend serves, else the CPU.
        dtype: float32, bfloat16, float16 or float64, as a torch.dtype or by name; default: the checkpoint's.
        revision, token, cache_dir, local_files_only: as in `bertfast.checkpoint.resolve`.

    Raises:
        CheckpointError, ConfigError: the checkpoint is missing, damaged, or has no head of a task.
        UnsupportedError: its head is of another kind (masked words, next sentence).
    """
    from ..models.finetuning import load_finetuned

    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    folder = resolve(path_or_hub_id, **hub, local_files_only=local_files_only)
    tokenizer = Tokenizer.from_folder(folder)
    form = load_form(folder)
    form = _guessed(read_config(folder), tokenizer, str(folder)) if form is None else form
    kind = KINDS[form.task](form, tokenizer)
    model = load_finetuned(folder, kind.head, dtype).to(device or default_device())
    return Predictor(model, kind)


def _guessed(config: dict[str, Any], tokenizer: Tokenizer, name: str) -> Form:
    """The form of a model of others."""
    head = next(iter(config.get("architectures") or ["none"]))
    if head not in _TASKS:
        raise UnsupportedError(
            f"{name}: load takes models with the heads {', '.join(_TASKS)}, this one is {head}. Fine-tune it: bertfast "
            "finetune."
        )
    task, positions = _TASKS[head], config["max_position_embeddings"]
    length = min(positions, tokenizer.max_length or positions, 384 if task == "qa" else positions)
    numbered = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = tuple(numbered[key] for key in sorted(numbered, key=int))
    problem = config.get("problem_type")
    if task == "single" and (problem == "regression" or len(labels) == 1):
        return Form("regression", max_length=length)
    if task in ("choice", "qa"):
        labels = ()
    several = problem == "multi_label_classification"
    long = "truncate" if task in ("single", "choice") else "slide"
    return Form(task, Columns().of_task(task), None, labels, several, length, long)
