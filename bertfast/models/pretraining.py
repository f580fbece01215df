"""Models with the heads of pretraining: made, loaded, and saved as transformers does it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.utils import logging as theirs

from ..checkpoint.hub import TOKENIZER_FILES
from ..checkpoint.load import read_config
from ..errors import ArgumentError, CheckpointError
from .heads import BertForMaskedLM, BertForPreTraining

_WORDS, _PAIRS = "cls.predictions.transform.dense.weight", "cls.seq_relationship.weight"


def make_config(model: str | os.PathLike[str] | None, fields: Mapping[str, Any]) -> BertConfig:
    """That of a checkpoint with these fields in the place of its own, or with `model` None one of these fields.

    Raises:
        ArgumentError: there is none, or the checkpoint's has no such field.
    """
    unknown: dict[str, Any] = {}
    try:
        if model is None:
            return BertConfig(**fields)
        config, unknown = BertConfig.from_pretrained(model, return_unused_kwargs=True, **fields)
    except (TypeError, ValueError, OSError) as error:
        name = "config" if model is None else "model"
        raise ArgumentError(name, "what makes a BertConfig", str(error)) from error
    if unknown:
        raise ArgumentError("config", "fields of a BertConfig", ", ".join(unknown))
    return config


def make_model(
    config: BertConfig, folder: str | os.PathLike[str] | None, seed: int, next_sentence: bool
) -> nn.Module:
    """`BertForPreTraining`, or `BertForMaskedLM` without next sentences, in float32.

    Args:
        folder: of a checkpoint; weights that it lacks, and with None all, are new. seed: of what is new.

    Raises:
        ArgumentError: the config makes no model, or another than the checkpoint's.
    """
    kind = BertForPreTraining if next_sentence else BertForMaskedLM
    torch.manual_seed(seed)
    try:
        if folder is None:
            return kind(config)
        with quiet():
            return kind.from_pretrained(folder, config=config, dtype=torch.float32)
    except (ValueError, RuntimeError) as error:  # RuntimeError: sizes of weights differ
        raise ArgumentError("config", "what makes a model", str(error)) from error


def save_model(
    model: nn.Module, weights: Mapping[str, Tensor], tokenizer: Path, folder: Path
) -> None:
    """As transformers saves it, with the files of the tokenizer of a folder."""
    with quiet():
        model.save_pretrained(folder, state_dict=dict(weights))
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)


def load_pretrained(
    folder: str | os.PathLike[str], dtype: torch.dtype | str | None = None
) -> BertForPreTraining | BertForMaskedLM:
    """The model of a checkpoint folder in eval mode: `BertForPreTraining` where its weights have both heads, whatever
    its config says, else `BertForMaskedLM`.

    Args:
        dtype: default: the checkpoint's.

    Raises:
        ConfigError, CheckpointError: it is no BERT, its files are damaged, or it has no masked-LM head.
    """
    read_config(folder)
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype or "auto"
    with quiet():
        model, found = BertForPreTraining.from_pretrained(
            folder, dtype=kind, output_loading_info=True
        )
        if _WORDS in found["missing_keys"]:
            raise CheckpointError(
                f"{folder}: expected a checkpoint with a masked-language-model head."
            )
        if _PAIRS in found["missing_keys"]:
            model = BertForMaskedLM.from_pretrained(folder, dtype=kind)
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers reports weights that are new as a table, which a recipe's heads are, and draws bars for seconds."""
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
