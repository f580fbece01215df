"""What predictions are worth, in numpy: functions of the gold values and the predicted ones, in this order.

Figures are shares from 0 to 1 (or -1 to 1), never percent.
"""

from .calibration import expected_calibration_error, probabilities, temperature
from .classes import accuracy, confusion_matrix, f1, macro_f1, matthews
from .correlation import pearson, spearman
from .entities import Scores, entity_scores, spans, tags_of

__all__ = [
    "Scores",
    "accuracy",
    "confusion_matrix",
    "entity_scores",
    "expected_calibration_error",
    "f1",
    "macro_f1",
    "matthews",
    "pearson",
    "probabilities",
    "spans",
    "spearman",
    "tags_of",
    "temperature",
]
