"""`optimize` and `restore`: live objects that hold transformers' BERT, switched to bertfast's classes and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.models.bert import modeling_bert

from ..errors import ArgumentError
from .bert import BertLayer, BertModel
from .engine import change_class
from .heads import HEADS
from .snapshot import forget

CLASSES = {  # transformers' class -> ours
    modeling_bert.BertModel: BertModel,
    modeling_bert.BertLayer: BertLayer,
    **HEADS,
}


class Switched(NamedTuple):
    """What `optimize` or `restore` did.

    Fields:
        switched: (name, class that it has now) of each model and head; its layers go with it.
        left: (name, class, reason) of each module of transformers' that stays as it is.
    """

    switched: list[tuple[str, str]]
    left: list[tuple[str, str, str]]

    def __str__(self) -> str:
        lines = [f"switched  {name or 'the model itself'}: {kind}" for name, kind in self.switched]
        lines += [f"left      {name}: {kind}, {reason}" for name, kind, reason in self.left]
        return "\n".join(lines) or "nothing of transformers' BERT found"


def optimize(model: Any) -> Switched:
    """Let bertfast run every BERT of transformers inside a live object: in place, weights, hooks and names untouched.

    Args:
        model: a model or head, or what holds one: a pipeline, a SentenceTransformer or CrossEncoder, a PEFT model, any
            module.

    Returns:
        What was switched, and what of transformers' models was left and why.

    Raises:
        ArgumentError: there is no module in the object.
    """
    return _switch(model, CLASSES)


def restore(model: Any) -> Switched:
    """Give the models inside an object transformers' classes again; see `optimize`."""
    return _switch(model, {ours: kind for kind, ours in CLASSES.items()})


def _switch(model: Any, classes: dict[type, type]) -> Switched:
    switched: list[tuple[str, str]] = []
    left: list[tuple[str, str, str]] = []
    done = set(classes.values())
    for name, module in _modules(model):
        kind = type(module)
        if kind in classes:
            forget(module)
            change_class(module, classes[kind])
            if classes[kind] not in (BertLayer, modeling_bert.BertLayer):
                switched.append((name, _full_name(classes[kind])))
        elif kind not in done and isinstance(module, PreTrainedModel):
            left.append((name, _full_name(kind), _why_left(kind, classes)))
    return Switched(switched, left)


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules of an object by name; of an object that is no module itself, those of its attributes."""
    if isinstance(model, nn.Module):
        return model.named_modules()
    held = getattr(model, "__dict__", {})
    roots = {name: value for name, value in held.items() if isinstance(value, nn.Module)}
    if not roots:
        raise ArgumentError("model", "a module, or an object that holds one", type(model).__name__)
    return (
        (f"{root}.{name}" if name else root, module)
        for root, value in roots.items()
        for name, module in value.named_modules()
    )


def _why_left(kind: type, classes: dict[type, type]) -> str:
    if any(issubclass(kind, known) for known in classes):
        return "a class derived from BERT's; its own code would not run"
    if issubclass(kind, modeling_bert.BertPreTrainedModel):
        return "bertfast has no such head"
    return "not BERT"


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
