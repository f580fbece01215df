"""Checkpoints of pretraining, with the heads that they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging

from ..checkpoint.load import read_config
from ..errors import CheckpointError
from .heads import BertForMaskedLM, BertForPreTraining

_WORDS, _PAIRS = "cls.predictions.transform.dense.weight", "cls.seq_relationship.weight"


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
    with _quiet():
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


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers shows bars, and the weights of a head that is not there as a table."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
