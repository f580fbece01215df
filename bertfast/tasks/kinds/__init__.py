"""The kinds of tasks, by the name of the task."""

from .answers import Answers, Found
from .base import Examples, Kind
from .choice import Choice, Chosen
from .classification import Classification, Label, Labels, Weighted, balanced
from .tokens import Entity, Tagged, Tokens

KINDS: dict[str, type[Kind]] = {
    "single": Classification,
    "pair": Classification,
    "regression": Classification,
    "choice": Choice,
    "tokens": Tokens,
    "qa": Answers,
}

__all__ = [
    "KINDS",
    "Answers",
    "Choice",
    "Chosen",
    "Classification",
    "Entity",
    "Examples",
    "Found",
    "Kind",
    "Label",
    "Labels",
    "Tagged",
    "Tokens",
    "Weighted",
    "balanced",
]
