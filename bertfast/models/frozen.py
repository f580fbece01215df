"""`freeze()`: a model that keeps only the packed copies of its layers' weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.weights import Linear
from ..errors import UnsupportedError
from ..ops import packed
from . import fusion
from .engine import forget


class Freezable:
    """Mixin of the models."""

    def freeze(self) -> Any:
        """Keep only the packed form of the layers' weights: for inference with the least memory.

        Puts the model in eval mode. Until `unfreeze()` its outputs carry no gradient, `state_dict` and
        `save_pretrained` unpack exactly, and reading a frozen weight raises UnsupportedError. `train()`, `.to()` and
        its kin, and `load_state_dict` unfreeze first.

        Raises:
            UnsupportedError: the form that packs does not run here (no native code, device or dtype).
        """
        self.unfreeze()
        self.eval()
        held: dict[
            int, packed.FrozenParameter
        ] = {}  # a weight that several products share is packed once
        try:
            for linear in _freezable(self):
                weight = linear.weight
                if id(weight) not in held:
                    held[id(weight)] = packed.freeze(weight)
                _freeze(linear, held[id(weight)])
        except BaseException:
            self.unfreeze()
            raise
        forget(self.base_model)
        return self

    def unfreeze(self) -> Any:
        """Bring back plain weights, exactly as they were; does nothing to a model that is not frozen."""
        plain: dict[int, nn.Parameter] = {}
        for module in self.modules():
            weight = module._parameters.get("weight")
            if isinstance(weight, packed.FrozenParameter):
                module._parameters["weight"] = plain.setdefault(id(weight), _plain(weight))
        if plain:
            forget(self.base_model)
        return self

    @property
    def frozen(self) -> bool:
        """Whether `freeze()` is in force."""
        parameters = (module._parameters.get("weight") for module in self.modules())
        return any(isinstance(weight, packed.FrozenParameter) for weight in parameters)

    def train(self, mode: bool = True) -> Any:
        if mode:
            self.unfreeze()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.unfreeze()
        return super()._apply(fn, recurse)


def _freezable(model: nn.Module) -> list[nn.Linear]:
    """The products that only fused operations read: no stand-in, and not one whose activation torch computes."""
    found: dict[int, nn.Linear] = {}
    for layer in model.base_model.encoder.layer:
        try:
            weights = fusion.layer_view(layer)
        except fusion.Unfit as unfit:
            raise UnsupportedError(f"freeze: {unfit}.") from None
        for place, part in zip(fusion.PLACES, weights, strict=False):
            read_by_torch = place == "intermediate.dense" and weights.activation is not None
            if isinstance(part, Linear) and not read_by_torch:
                linear = layer.get_submodule(place)
                found[id(linear)] = linear
    return list(found.values())


def _freeze(linear: nn.Linear, frozen: packed.FrozenParameter) -> None:
    if (
        _written not in linear._state_dict_hooks.values()
    ):  # they stay, and do nothing to plain weights
        linear._register_state_dict_hook(_written)
        linear.register_load_state_dict_pre_hook(_read)
    linear._parameters["weight"] = frozen


def _plain(frozen: packed.FrozenParameter) -> nn.Parameter:
    return nn.Parameter(frozen.unpack(), requires_grad=frozen.wanted_grad)


def _written(module: nn.Module, state_dict: dict, prefix: str, metadata: Any) -> None:
    weight = module._parameters["weight"]
    if isinstance(weight, packed.FrozenParameter):
        state_dict[f"{prefix}weight"] = weight.unpack()


def _read(module: nn.Module, *arguments: Any) -> None:
    weight = module._parameters.get("weight")
    if isinstance(weight, packed.FrozenParameter):
        module._parameters["weight"] = _plain(weight)
