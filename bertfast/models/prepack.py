"""`prepack()`: a model that keeps its layers' weights in the kernels' layout only."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.weights import Linear
from ..errors import UnsupportedError
from ..ops._weights import PrepackedParameter, prepack
from . import fusion
from .snapshot import forget


class Prepackable:
    """Mixin of the models."""

    def prepack(self) -> Any:
        """Keep the layers' weights in the layout of the C++ kernels only: for inference.

        Puts the model in eval mode. Until `unpack()` its outputs carry no gradient, `state_dict` and
        `save_pretrained` unpack exactly, and reading a prepacked weight raises UnsupportedError. `train()`, `.to()` and
        its kin, and `load_state_dict` unpack first.

        Raises:
            UnsupportedError: the backend that packs does not run here (no native code, device or dtype).
        """
        self.unpack()
        self.eval()
        held: dict[int, PrepackedParameter] = {}  # a shared weight is packed once
        try:
            for linear in _prepackable(self):
                weight = linear.weight
                if id(weight) not in held:
                    held[id(weight)] = prepack(weight)
                _replace(linear, held[id(weight)])
        except BaseException:
            self.unpack()
            raise
        forget(self.base_model)
        return self

    def unpack(self) -> Any:
        """Bring back plain weights, exactly as they were; does nothing to a model that is not prepacked."""
        plain: dict[int, nn.Parameter] = {}
        for module in self.modules():
            weight = module._parameters.get("weight")
            if isinstance(weight, PrepackedParameter):
                module._parameters["weight"] = plain.setdefault(id(weight), _plain(weight))
        if plain:
            forget(self.base_model)
        return self

    @property
    def prepacked(self) -> bool:
        """Whether `prepack()` is in force."""
        parameters = (module._parameters.get("weight") for module in self.modules())
        return any(isinstance(weight, PrepackedParameter) for weight in parameters)

    def train(self, mode: bool = True) -> Any:
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.unpack()
        return super()._apply(fn, recurse)


def _prepackable(model: nn.Module) -> list[nn.Linear]:
    """The products that only fused operations read: no stand-in, and not one whose activation torch computes."""
    found: dict[int, nn.Linear] = {}
    for layer in model.base_model.encoder.layer:
        try:
            weights = fusion.layer_view(layer)
        except fusion.Unfit as unfit:
            raise UnsupportedError(f"prepack: {unfit}.") from None
        for place, part in zip(fusion.PLACES, weights, strict=False):
            read_by_torch = place == "intermediate.dense" and weights.activation is not None
            if isinstance(part, Linear) and not read_by_torch:
                linear = layer.get_submodule(place)
                found[id(linear)] = linear
    return list(found.values())


def _replace(linear: nn.Linear, packed: PrepackedParameter) -> None:
    if _written not in linear._state_dict_hooks.values():
        # they stay, and do nothing to plain weights
        linear._register_state_dict_hook(_written)
        linear.register_load_state_dict_pre_hook(_read)
    linear._parameters["weight"] = packed


def _plain(packed: PrepackedParameter) -> nn.Parameter:
    return nn.Parameter(packed.unpack(), requires_grad=packed.wanted_grad)


def _written(module: nn.Module, state_dict: dict, prefix: str, metadata: Any) -> None:
    weight = module._parameters["weight"]
    if isinstance(weight, PrepackedParameter):
        state_dict[f"{prefix}weight"] = weight.unpack()


def _read(module: nn.Module, *arguments: Any) -> None:
    weight = module._parameters.get("weight")
    if isinstance(weight, PrepackedParameter):
        module._parameters["weight"] = _plain(weight)
