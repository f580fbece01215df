"""Hostile checkpoints are refused before transformers opens them; quantized ones are read here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from .._files import read_json
from ..checkpoint import quantized
from ..checkpoint.reading import check_files, read_state_dict
from ..errors import CheckpointError, ConfigError
from ..ops._quantized import QuantizedParameter
from .quantize import Quantizable, put


class CheckedLoading(Quantizable):
    """Mixin of the models: transformers' `from_pretrained` after a look at a local folder's files."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `from_pretrained`; a folder that a quantized model was saved to gives that model.

        Raises:
            CheckpointError: a folder holds an index that names files elsewhere, a safetensors file that is not whole,
                or a pickle with code; or int8 weights that are not whole.
        """
        if isinstance(pretrained_model_name_or_path, str | os.PathLike):
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if folder.is_dir():
                check_files(folder)
                said = _quantization(folder)
                if said is not None:
                    return cls._from_quantized(folder, said, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _from_quantized(cls, folder: Path, said: dict, *args: Any, **kwargs: Any) -> Any:
        """transformers loads the weights that the int8 stands for, then int8 takes their place: it checks names."""
        kwargs.pop("subfolder", None)
        config = kwargs.pop("config", None) or cls.config_class.from_pretrained(folder)
        config.__dict__.pop("quantization_config", None)  # which transformers would look for
        tensors = read_state_dict(folder)
        weights = quantized.take(tensors, quantized.group_size(said))
        tensors |= {name: weight.unpack() for name, weight in weights.items()}
        loaded = super().from_pretrained(None, *args, config=config, state_dict=tensors, **kwargs)
        _install(loaded[0] if isinstance(loaded, tuple) else loaded, weights, folder)
        return loaded


def _quantization(folder: Path) -> dict | None:
    """config.json, if it says that bertfast wrote int8 weights."""
    path = folder / "config.json"
    config = read_json(path, ConfigError) if path.is_file() else {}
    return config if quantized.is_quantized(config) else None


def _install(model: nn.Module, weights: dict[str, QuantizedParameter], folder: Path) -> None:
    base = model.base_model
    for name, weight in weights.items():
        path = name.removeprefix(f"{model.base_model_prefix}.").removesuffix(".weight")
        try:
            linear = base.get_submodule(path)
        except AttributeError:
            linear = None
        if not isinstance(linear, nn.Linear) or linear.weight.shape != weight.shape:
            raise CheckpointError(f"{folder}: {name}: expected a Linear's of this model.")
        put(linear, weight.packed.cast(base.dtype))
    model.config.quantization_config = quantized.said_of(next(iter(weights.values())))
    model.eval()
