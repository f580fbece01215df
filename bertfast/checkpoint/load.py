"""A checkpoint's configuration and weights, read without transformers: for `Encoder` and the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import read_json
from ..core.weights import (
    ACTIVATIONS,
    BertWeights,
    MaskedLMWeights,
    bert_weights,
    masked_lm_weights,
)
from ..errors import ArgumentError, CheckpointError, ConfigError, UnsupportedError
from .quantized import group_size, is_quantized, take
from .reading import read_state_dict

_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)
_DEFAULTS = {  # what config.json may leave out, as in transformers
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
_OTHERS = (  # field, the value that an encoder of BERT's has, what to do with another
    ("model_type", "bert", "Load another architecture with transformers."),
    ("is_decoder", False, "bertfast.BertModel runs it as transformers does."),
    ("add_cross_attention", False, "bertfast.BertModel runs it as transformers does."),
    ("position_embedding_type", "absolute", "For relative positions use transformers before 5."),
    ("quantization_config", None, "Use bertfast.optimize(SentenceTransformer(path))."),
)
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What config.json says, checked, with transformers' defaults for what it leaves out.

    Args:
        folder: a directory, or the file itself.

    Raises:
        ConfigError: it is missing, no JSON object, or describes no encoder that the core runs.
    """
    path = Path(folder)
    path = path / "config.json" if path.is_dir() else path
    config = {**_DEFAULTS, **read_json(path, ConfigError)}
    for name, expected, advice in _OTHERS:
        found = config.get(name) or expected
        if name == "quantization_config" and is_quantized(config):
            continue
        if found != expected:
            raise ConfigError(f"{path}: {name}: expected {expected!r}, got {found!r}. {advice}")
    for name in _SIZES:
        value = config.get(name)
        least = 0 if name == "num_hidden_layers" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise ConfigError(f"{path}: {name}: expected an integer from {least}, got {value!r}.")
    if config["hidden_size"] % config["num_attention_heads"]:
        got = f"{config['hidden_size']} with {config['num_attention_heads']} heads"
        raise ConfigError(f"{path}: hidden_size: expected a multiple of the heads, got {got}.")
    if config["hidden_act"] not in ACTIVATIONS:
        expected, got = f"one of {', '.join(ACTIVATIONS)}", repr(config["hidden_act"])
        raise ConfigError(f"{path}: hidden_act: expected {expected}, got {got}.")
    return config


def load_bert(
    folder: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> BertWeights:
    """The encoder of a checkpoint directory, for inference.

    Args:
        dtype: None for what the config says, else that of the weights; as transformers.

    Raises:
        ConfigError, CheckpointError: a file is missing, hostile, or does not hold a BERT encoder.
        ArgumentError: dtype is none.
    """
    config, tensors = _read(folder, dtype, device)
    return _view(bert_weights, tensors, config, folder)


def load_masked_lm(
    folder: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[BertWeights, MaskedLMWeights]:
    """As `load_bert`, with the masked-LM head."""
    config, tensors = _read(folder, dtype, device)
    if not any(name.startswith("cls.predictions.transform") for name in tensors):
        raise CheckpointError(f"{folder}: expected a checkpoint with a masked-language-model head.")
    head = _view(masked_lm_weights, tensors, config, folder)
    return _view(bert_weights, tensors, config, folder), head


def _view(view: Any, tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Any) -> Any:
    try:
        return view(tensors, config)
    except KeyError as error:
        raise CheckpointError(f"{folder}: expected the tensor {error}, it is not there.") from error


def _read(
    folder: str | os.PathLike[str], dtype: Any, device: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = read_config(folder)
    tensors = {_name(name): tensor for name, tensor in read_state_dict(folder).items()}
    wanted, kept = _dtype(dtype, config, tensors), {}
    if is_quantized(config):
        if torch.device(device or "cpu").type != "cpu":
            raise UnsupportedError(
                f"{folder}: its weights are int8, which runs on a CPU. Give device='cpu'."
            )
        kept = take(tensors, group_size(config), wanted)
    _check_shapes(tensors | kept, config, folder)
    for name, tensor in list(tensors.items()):  # one by one: no second copy of all of them
        if tensor.is_floating_point():
            tensors[name] = tensor.to(device or "cpu", wanted)
    return config, tensors | kept


def _name(name: str) -> str:
    for old, new in _OLD_NAMES:
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name.removeprefix("bert.")


def _check_shapes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Any) -> None:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    matrices = {
        "word_embeddings.weight": (config["vocab_size"], hidden),
        "position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "intermediate.dense.weight": (inner, hidden),
        "intermediate.dense.bias": (inner,),
        **{f"self.{part}.weight": (hidden, hidden) for part in ("query", "key", "value")},
        "attention.output.dense.weight": (hidden, hidden),
        ".output.dense.weight": (hidden, inner),
        "LayerNorm.weight": (hidden,),
    }
    for name, tensor in tensors.items():
        if not name.startswith(("embeddings.", "encoder.")) or name.endswith("_ids"):
            continue
        if not tensor.is_floating_point():
            got = f"{tensor.dtype} (quantized weights?)"
            raise CheckpointError(f"{folder}: {name}: expected a floating dtype, got {got}.")
        end = next((end for end in matrices if name.endswith(end)), None)
        if end is not None and tuple(tensor.shape) != matrices[end]:
            expected, got = list(matrices[end]), list(tensor.shape)
            raise CheckpointError(
                f"{folder}: {name}: expected {expected} by config.json, got {got}."
            )


def _dtype(asked: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> torch.dtype:
    asked = None if asked == "auto" else asked
    said = asked or config.get("dtype") or config.get("torch_dtype")
    if said is None:
        floats = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
        return next(floats, torch.float32)
    found = getattr(torch, said.removeprefix("torch."), None) if isinstance(said, str) else said
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        if asked is None:
            raise ConfigError(f"dtype: expected a floating dtype in config.json, got {said!r}.")
        raise ArgumentError("dtype", "a floating torch.dtype, its name, or 'auto'", repr(said))
    return found
