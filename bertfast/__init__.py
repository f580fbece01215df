"""bertfast: a BERT encoder over real tokens only, a drop-in for Hugging Face's BertModel."""

from .config import BertConfig
from .data.fill_mask import fill_mask
from .dispatch import use_backend
from .encoder import Encoder
from .errors import (
    ArgumentError,
    BertfastError,
    CheckpointError,
    ConfigError,
    InputFileError,
    UnsupportedError,
)
from .explain import explain
from .heads import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from .model import BertModel

__version__ = "0.1.0"

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
    "explain",
    "fill_mask",
    "use_backend",
]
