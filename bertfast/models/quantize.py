"""`quantize()`: a model that keeps its layers' weights in int8 only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..checkpoint.quantized import said_of, written
from ..core.quantize import quantize_layers
from ..errors import ArgumentError, UnsupportedError
from ..ops._quantized import QuantizedParameter
from . import fusion
from .snapshot import forget

_GONE = "The weights themselves are gone: load the checkpoint again for this."
_FIELDS = dict(  # of LayerWeights -> the Linear's place in a layer
    zip(
        ("query", "key", "value", "out", "out_norm", "inner", "outer", "norm"),
        fusion.PLACES,
        strict=True,
    )
)


class Quantizable:
    """Mixin of the models, before `Prepackable`."""

    def quantize(self, mode: str = "int8") -> Any:
        """Keep the layers' weights in int8 only: for inference on a CPU, in less memory and time.

        Weights have a scale for each output; what they multiply is rounded to int8 at each call, row by row; a few
        columns stay in float. Attention, LN, embeddings, pooler and heads stay as they are. Puts the model in eval
        mode. Nothing undoes it: `train()`, `.to()` and its kin, and `load_state_dict` raise from then on;
        `save_pretrained` writes the int8 weights, which `from_pretrained` and `Encoder` read.

        Args:
            mode: "int8".

        Raises:
            ArgumentError: another mode.
            UnsupportedError: it is quantized already, not on a CPU, in float64, holds inf or NaN, or something else
                stands in the place of a Linear. The model is as it was then.
        """
        if mode != "int8":
            raise ArgumentError("mode", "'int8'", repr(mode))
        if self.quantized:
            raise UnsupportedError("quantize: this model is quantized already.")
        self.unpack()
        self.eval()
        view = self.base_model.view()
        if isinstance(view, str):
            raise UnsupportedError(f"quantize: {view}.")
        install(self, quantize_layers(view))
        return self

    @property
    def quantized(self) -> bool:
        """Whether the layers' weights are in int8."""
        parameters = (module._parameters.get("weight") for module in self.modules())
        return any(isinstance(weight, QuantizedParameter) for weight in parameters)

    def train(self, mode: bool = True) -> Any:
        if mode and self.quantized:
            raise UnsupportedError(f"train: this model is quantized, for inference only. {_GONE}")
        return super().train(mode)

    def prepack(self) -> Any:
        if self.quantized:
            raise UnsupportedError(
                "prepack: this model is quantized, which is a packed form already."
            )
        return super().prepack()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if not self.quantized:
            return super()._apply(fn, recurse)
        like = torch.empty(0, dtype=self.dtype)
        moved = fn(like)
        if (moved.device, moved.dtype) == (like.device, like.dtype):
            return self
        raise UnsupportedError(
            f"this model is quantized: it stays on the CPU and in its dtype. {_GONE}"
        )


def install(model: nn.Module, layers: list[dict[str, QuantizedParameter]]) -> None:
    """Put quantized weights in the place of a model's own.

    Args:
        layers: for each layer, by the fields of `LayerWeights`.
    """
    for layer, weights in zip(model.base_model.encoder.layer, layers, strict=True):
        for field, weight in weights.items():
            put(layer.get_submodule(_FIELDS[field]), weight)
            model.config.quantization_config = said_of(weight)
    forget(model.base_model)


def put(linear: nn.Linear, weight: QuantizedParameter) -> None:
    """A quantized weight in the place of a Linear's own."""
    linear._register_state_dict_hook(_write)
    linear.register_load_state_dict_pre_hook(_refuse)
    linear._parameters["weight"] = weight


def _write(module: nn.Module, state_dict: dict, prefix: str, metadata: Any) -> None:
    del state_dict[f"{prefix}weight"]
    state_dict |= {
        f"{prefix}{name}": part for name, part in written(module._parameters["weight"]).items()
    }


def _refuse(module: nn.Module, *arguments: Any) -> None:
    raise UnsupportedError(f"load_state_dict: this model is quantized. {_GONE}")
