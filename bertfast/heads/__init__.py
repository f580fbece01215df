"""The task heads on BERT's encoder: transformers' names, parameters, arguments, label conventions, losses, outputs.

They run on the packed stream of real tokens, so padding is never computed. What differs from transformers for that:

- Logits at padding are zeros (start and end logits: the lowest value, and padding takes no part in the softmax over an
  answer's places); a label at padding does not count; pooling takes each sequence's first real token, where
  transformers takes column 0, and gives zeros for a row that is all padding.
- With labels `BertForMaskedLM` and `BertForPreTraining` make no logits of words unless output_logits=True.
- `num_items_in_batch` divides the sum of a loss, so that gradients accumulated over parts of a batch are those of the
  whole batch. transformers' Trainer passes it to BERT too and relies on it, but transformers' BERT takes no notice.
- Losses are computed and returned in fp32 (float64 for float64).
"""

from .classification import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from .pretraining import BertForMaskedLM, BertForNextSentencePrediction, BertForPreTraining

__all__ = [
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
]
