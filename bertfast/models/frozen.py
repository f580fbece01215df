"""`freeze()`: a model that keeps only the packed copies of its layers' weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..ops import packed


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
        try:
            for linear in _freezable(self):
                _freeze(linear)
        except BaseException:
            self.unfreeze()
            raise
        return self

    def unfreeze(self) -> Any:
        """Bring back plain weights, exactly as they were; does nothing to a model that is not frozen."""
        for module in self.modules():
            if isinstance(module._parameters.get("weight"), packed.FrozenParameter):
                _unfreeze(module)
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
    """The products that only fused operations read: not one whose activation torch computes."""
    found = []
    for layer in model.base_model.encoder.layer:
        linears = [m for m in layer.modules() if type(m) is nn.Linear]
        if getattr(model.config, "hidden_act", "gelu") != "gelu":
            linears.remove(layer.intermediate.dense)
        found += linears
    return found


def _freeze(linear: nn.Linear) -> None:
    if (
        _written not in linear._state_dict_hooks.values()
    ):  # they stay, and do nothing to plain weights
        linear._register_state_dict_hook(_written)
        linear.register_load_state_dict_pre_hook(_read)
    linear._parameters["weight"] = packed.freeze(linear.weight)


def _unfreeze(linear: nn.Module) -> None:
    frozen = linear._parameters["weight"]
    weight = nn.Parameter(frozen.unpack(), requires_grad=frozen.wanted_grad)
    linear._parameters["weight"] = weight


def _written(module: nn.Module, state_dict: dict, prefix: str, metadata: Any) -> None:
    weight = module._parameters["weight"]
    if isinstance(weight, packed.FrozenParameter):
        state_dict[f"{prefix}weight"] = weight.unpack()


def _read(module: nn.Module, *arguments: Any) -> None:
    if isinstance(module._parameters.get("weight"), packed.FrozenParameter):
        _unfreeze(module)
