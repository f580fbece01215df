"""The task heads on BERT's encoder, with transformers' names, parameters, arguments, losses and outputs.

They run on the packed stream of real tokens, so padding is never computed. What follows from that:
a label at padding is no label; logits at padding are zeros (start and end logits: the lowest value);
a sequence that is all padding pools zeros. Losses are computed in fp32. `num_items_in_batch` divides
the sum of a loss, so that gradients accumulated over parts of a batch are those of the whole batch.
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
