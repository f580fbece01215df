"""bertfast: transformers' BERT models with another engine, which computes real tokens only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .dispatch import batch_invariant, use_backend
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

__version__ = "0.1.0"

_MODELS = {  # imported when first asked for, as they import transformers
    "BertConfig": "transformers",
    "BertForMaskedLM": "bertfast.models.heads",
    "BertForMultipleChoice": "bertfast.models.heads",
    "BertForNextSentencePrediction": "bertfast.models.heads",
    "BertForPreTraining": "bertfast.models.heads",
    "BertForQuestionAnswering": "bertfast.models.heads",
    "BertForSequenceClassification": "bertfast.models.heads",
    "BertForTokenClassification": "bertfast.models.heads",
    "BertModel": "bertfast.models.bert",
    "optimize": "bertfast.models.optimize",
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
    "InputFileError",
    "UnsupportedError",
    "batch_invariant",
    "explain",
    "fill_mask",
    "optimize",
    "restore",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODELS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
