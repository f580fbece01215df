"""bertfast: transformers' BERT models with another engine, which computes real tokens only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .dispatch import batch_invariant, graphs, use_backend
from .errors import (
    ArgumentError,
    BertfastError,
    CheckpointError,
    ConfigError,
    InputFileError,
    UnsupportedError,
)
from .explain import explain
from .inference.encoder import Encoder
from .inference.fill_mask import fill_mask

if TYPE_CHECKING:
    from transformers import BertConfig

    from .models.bert import BertModel
    from .models.heads import (
        BertForMaskedLM,
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from .models.optimize import optimize, restore
    from .tasks.predictor import load
    from .training.finetuning import FineTuning, finetune
    from .training.pretraining import pretrain

__version__ = "0.1.0"

_HOMES = {  # of what is imported when first asked for, as it imports transformers; the others are heads
    "BertConfig": "transformers",
    "BertModel": "bertfast.models.bert",
    "FineTuning": "bertfast.training.finetuning",
    "finetune": "bertfast.training.finetuning",
    "load": "bertfast.tasks.predictor",
    "optimize": "bertfast.models.optimize",
    "pretrain": "bertfast.training.pretraining",
    "restore": "bertfast.models.optimize",
}

__all__ = [
    "ArgumentError",
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertfastError",
    "CheckpointError",
    "ConfigError",
    "Encoder",
    "FineTuning",
    "InputFileError",
    "UnsupportedError",
    "batch_invariant",
    "explain",
    "fill_mask",
    "finetune",
    "graphs",
    "load",
    "optimize",
    "pretrain",
    "restore",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "bertfast.models.heads")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
