"""What the last full look at a model's modules found, and whether it still holds.

The full look (`fusion.py`) takes 10 us a layer. It is repeated only where something changed since: a module, its class,
a hook, a patched forward, a parameter object, a dtype, or one of the numbers that the look read. Values of weights do
not matter here, as the view holds the parameters themselves.
"""

from __future__ import annotations

import operator
import weakref
from typing import Any

import torch
from torch import nn

from .. import extension
from ..core.weights import BertWeights, LayerWeights, Linear, Norm

_dtype = operator.attrgetter("dtype")
_checkpointed = operator.attrgetter("gradient_checkpointing")
_NUMBERS = (
    *("p", "eps", "padding_idx", "max_norm", "sparse", "scale_grad_by_freq"),
    *("num_attention_heads", "attention_head_size", "position_embedding_type", "scaling"),
    *("approximate", "act", "intermediate_act_fn"),
)
_SNAPSHOTS: weakref.WeakKeyDictionary[nn.Module, Snapshot] = weakref.WeakKeyDictionary()

_DEFAULTS: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], bool]]
_DEFAULTS = weakref.WeakKeyDictionary()
_BUFFERS = ("position_ids", "token_type_ids")


class Snapshot:
    """A model's view and everything that it was made from."""

    def __init__(self, model: nn.Module, weights: BertWeights):
        self.weights = weights
        self.top = model._modules
        self.children = list(self.top.values())
        self.modules = [m for child in self.children if child is not None for m in child.modules()]
        self.dicts = [module.__dict__ for module in self.modules]
        self.classes = list(map(type, self.modules))
        self.parts, self.tensors, self.owners, self.names = [], [], [], []
        for held in self.dicts:
            self.parts += [*held["_modules"].values(), *held["_parameters"].values()]
            self.tensors += [t for t in held["_parameters"].values() if t is not None]
            found = [name for name in _NUMBERS if name in held]
            found += ["training"] * ("p" in held)
            self.names += found
            self.owners += [held] * len(found)
        self.dtypes = _dtypes(self.tensors)
        self.numbers = self._numbers()
        self.layers = list(model.encoder.layer)
        self.embeddings = model.embeddings
        self.buffers = _buffers(model.embeddings)

    def _numbers(self) -> list[Any]:
        return list(map(operator.getitem, self.owners, self.names))

    def holds(self) -> bool:
        """Whether a full look would find the same."""
        return (
            extension.cpu.unchanged(self.modules, self.dicts, self.classes, self.parts)
            and list(self.top.values()) == self.children
            and _dtypes(self.tensors) == self.dtypes
            and self._numbers() == self.numbers
            and _buffers(self.embeddings) == self.buffers
            and not any(map(_checkpointed, self.layers))
        )


def known(model: nn.Module) -> BertWeights | None:
    """The view of a model in which nothing has changed since it was kept."""
    if torch.compiler.is_compiling():  # first: the table is not to be traced
        return None
    snapshot = _SNAPSHOTS.get(model)
    if snapshot is None:
        return None
    if snapshot.holds():
        return snapshot.weights
    _SNAPSHOTS.pop(model, None)
    return None


def keep(model: nn.Module, weights: BertWeights) -> None:
    """Keep a view for `known`, if every part of it is a parameter of the model.

    What torch.func.functional_call lends for one call would be held, with its graph, until the next.
    """
    if not torch.compiler.is_compiling() and extension.cpu is not None and _is_plain(weights):
        snapshot = Snapshot(model, weights)
        if all(isinstance(tensor, nn.Parameter) for tensor in snapshot.tensors):
            _SNAPSHOTS[model] = snapshot


def forget(model: nn.Module) -> None:
    """Let go of the tensors of the last look."""
    _SNAPSHOTS.pop(model, None)


def _dtypes(tensors: list[torch.Tensor]) -> list[torch.dtype]:
    with torch._C.DisableTorchFunctionSubclass():  # prepacked ones would ask Python for each
        return list(map(_dtype, tensors))


def has_default_buffers(embeddings: nn.Module) -> bool:
    """Whether positions count from 0 and segments are 0 where a call gives none; values are read once a change."""
    if torch.compiler.is_compiling():
        return True
    now = _buffers(embeddings)
    known = _DEFAULTS.get(embeddings)
    if known is not None and known[0] == now:
        return known[1]
    positions, segments = (embeddings._buffers.get(name) for name in _BUFFERS)
    default = positions is None or bool(
        (positions == torch.arange(positions.shape[-1], device=positions.device)).all()
    )
    default = default and (segments is None or not segments.any())
    _DEFAULTS[embeddings] = (now, default)
    return default


def _buffers(embeddings: nn.Module) -> tuple[object, ...]:
    """What changes when the buffers do."""
    held = (embeddings._buffers.get(name) for name in _BUFFERS)
    return tuple(
        None if b is None else (id(b), b.data_ptr(), 0 if b.is_inference() else b._version)
        for b in held
    )


def _is_plain(weights: BertWeights) -> bool:
    word, layers = weights.embeddings.word, weights.layers
    return isinstance(word, torch.Tensor) and all(
        isinstance(layer, LayerWeights)
        and all(isinstance(part, Linear | Norm) for part in layer[:8])
        for layer in layers
    )
