"""A model and its packed weights: it owns their cache, and can keep nothing else (`freeze`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ..ops import packed


def frozen_linears(module: nn.Module) -> list[nn.Linear]:
    """The products under `module` whose weight is frozen now."""
    return [
        m
        for m in module.modules()
        if isinstance(m._parameters.get("weight"), packed.FrozenParameter)
    ]


@contextlib.contextmanager
def thawed(module: nn.Module) -> Iterator[None]:
    """Plain weights in place of the frozen ones inside the block, unpacked exactly."""
    linears = frozen_linears(module)
    kept = [linear._parameters["weight"] for linear in linears]
    try:
        for linear, weight in zip(linears, kept, strict=True):
            linear._parameters["weight"] = nn.Parameter(weight.unpack(), requires_grad=False)
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear._parameters["weight"] = weight


class PackedWeights:
    """Mixin of a model that runs on packed weights; `freezable_linears()` is the model's to define.

    Packed copies are cached while the model is in eval mode and grad is off. `train()`, `.to()` and its kin, and
    loading drop them; a copy or a pickle of the model does not carry them.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._packed = packed.Cache()
        self._frozen: dict[str, bool] = {}  # name of a frozen weight -> its requires_grad

    def freeze(self):
        """Keep only the packed form of the layers' weights: for inference with the least memory.

        Puts the model in eval mode. Until `unfreeze()` its outputs carry no gradient, `state_dict` and
        `save_pretrained` unpack exactly, and reading a frozen weight raises UnsupportedError. `train()`, `.to()` and
        its kin, and `load_state_dict` unfreeze first.

        Raises:
            UnsupportedError: the form that packs does not run here (no native code, device or dtype).
        """
        self.unfreeze()
        self.eval()
        self._packed.clear()
        try:
            for name, linear in self.freezable_linears():
                requires_grad = linear.weight.requires_grad
                linear._parameters["weight"] = packed.freeze(linear.weight)
                self._frozen[name] = requires_grad
        except BaseException:
            self.unfreeze()
            raise
        return self

    def unfreeze(self):
        """Bring back plain weights, exactly as they were; does nothing to a model that is not frozen."""
        for name in list(self._frozen):
            linear = self.get_submodule(name)
            weight = linear._parameters["weight"].unpack()
            linear._parameters["weight"] = nn.Parameter(
                weight, requires_grad=self._frozen.pop(name)
            )
        return self

    @property
    def frozen(self) -> bool:
        """Whether `freeze()` is in force."""
        return bool(self._frozen)

    def train(self, mode: bool = True):
        if mode:
            self._drop_packed()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._drop_packed()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._drop_packed()
        return super()._load_from_state_dict(*args, **kwargs)

    def _drop_packed(self):
        self.unfreeze()
        self._packed.clear()

    def _weights_in_use(self) -> contextlib.AbstractContextManager:
        """Entered around the layers of one forward: caching where it is safe, no gradient where weights are frozen."""
        if torch.compiler.is_compiling() or self.training:
            return contextlib.nullcontext()
        if self._frozen:
            return torch.no_grad()
        return contextlib.nullcontext() if torch.is_grad_enabled() else self._packed.active()

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}

    def __setstate__(self, state):
        super().__setstate__({**state, "_packed": packed.Cache()})
