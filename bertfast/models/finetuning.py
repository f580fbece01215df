"""Models with a task's head: made for fine-tuning, and loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn
from transformers import BertConfig

from ..checkpoint.load import read_config
from ..errors import ArgumentError, CheckpointError
from . import heads
from .pretraining import quiet

# what a head of these learnt would be taken for another's, as they call it the same
_CLASSIFIERS = (
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
)
FREEZE = ("embeddings", "encoder")


def make_model(
    head: str,
    folder: str | os.PathLike[str],
    seed: int,
    labels: Sequence[str],
    problem: str | None,
) -> nn.Module:
    """A model of `models.heads` in float32 with the weights of a checkpoint; those that it lacks are new.

    Args:
        head: the class's name. seed: of what is new. labels: names of the head's scores. problem: problem_type.

    Raises:
        ConfigError, CheckpointError: it is no BERT, its files are damaged, or its head has another shape.
    """
    said = next(iter(read_config(folder).get("architectures") or []), None)
    wrong = CheckpointError(
        f"{folder}: expected a checkpoint that a {head} with {len(labels)} scores can begin with; its head was made "
        "for another task. Take the model that it was made of."
    )
    if said != head and {said, head} <= set(_CLASSIFIERS):
        raise wrong
    config = BertConfig.from_pretrained(folder)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    config.problem_type = problem
    torch.manual_seed(seed)
    with quiet():
        try:
            return getattr(heads, head).from_pretrained(folder, config=config, dtype=torch.float32)
        except RuntimeError as error:  # of another shape
            raise wrong from error


def load_finetuned(
    folder: str | os.PathLike[str], head: str, dtype: torch.dtype | str | None = None
) -> nn.Module:
    """A model with its head, in eval mode.

    Args:
        head: the class's name. dtype: default: the checkpoint's.

    Raises:
        ConfigError, CheckpointError: it is no BERT, its files are damaged, or it has not all weights of the head.
    """
    read_config(folder)
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype or "auto"
    with quiet():
        model, found = getattr(heads, head).from_pretrained(
            folder, dtype=kind, output_loading_info=True
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder}: expected the weights of a {head}, it lacks {missing[0]}. Fine-tune the model first: "
            "bertfast finetune."
        )
    return model.eval()


def freeze(model: nn.Module, what: str | int | None) -> None:
    """Keep weights as they are.

    Args:
        what: "embeddings"; "encoder": these and all layers; a number N: these and the first N layers; or None.

    Raises:
        ArgumentError: none of these, or more layers than there are.
    """
    if what is None:
        return
    layers = model.bert.encoder.layer
    count = {"embeddings": 0, "encoder": len(layers)}.get(what, what)
    whole = isinstance(count, int) and not isinstance(count, bool)
    if not whole or not 0 <= count <= len(layers):
        expected = f"{', '.join(FREEZE)} or a number of layers up to {len(layers)}"
        raise ArgumentError("freeze", expected, repr(what))
    for module in (model.bert.embeddings, *layers[:count]):
        module.requires_grad_(False)
