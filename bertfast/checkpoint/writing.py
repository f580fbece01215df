"""Writing a checkpoint: config.json and safetensors, all or nothing."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from .._files import atomic_path
from ..errors import ArgumentError, CheckpointError
from .hub import require

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers ties again on loading when tie_word_embeddings is set, and leaves out of its files.
_TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


def save(
    state_dict: Mapping[str, Tensor],
    config: Any,
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    architecture: str | None = None,
) -> None:
    """Write config.json and model.safetensors (or shards and their index) as transformers reads them.

    All files are written under temporary names first and renamed when all are whole: a disk that fills up half way
    leaves an earlier checkpoint as it was. Weights of an earlier save under other names are removed at the end.

    Args:
        state_dict: the model's tensors by Hugging Face's names; any device.
        config: the model's `BertConfig`; its dtype is written as that of the weights.
        directory: where to; made if need be.
        max_shard_size: bytes, or a size such as "5GB" or "200MB", that a file may have.
        architecture: the model's class name, for the config's `architectures`.

    Raises:
        CheckpointError: a tensor has no values (meta device), or the files cannot be written.
        ArgumentError: max_shard_size cannot be understood.
    """
    folder = Path(directory)
    tensors = _to_write(state_dict, config.tie_word_embeddings)
    files = _plan(tensors, _bytes(max_shard_size))
    texts = {"config.json": _config_text(config, tensors, architecture)}
    if len(files) > 1:
        texts[_INDEX] = _index_text(files, tensors)
    safetensors = require("safetensors", f"Writing {_WHOLE}")
    save_file = require("safetensors.torch", f"Writing {_WHOLE}").save_file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # renames in reverse order: shards, index, config
            for name, text in texts.items():
                stack.enter_context(atomic_path(folder / name)).write_text(text, encoding="utf-8")
            for name, names in files.items():
                path = stack.enter_context(atomic_path(folder / name))
                part = {key: tensors[key].cpu().contiguous() for key in names}
                save_file(part, str(path), metadata={"format": "pt"})
        _remove_old(folder, {*files, *texts})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the checkpoint cannot be written ({error}). What was there is unchanged."
        ) from error


def _to_write(state_dict: Mapping[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """The tensors that a file holds: each with memory of its own, those that the config ties once."""
    written: dict[str, Tensor] = {}
    places: set[tuple[Any, ...]] = set()
    storages: set[tuple[Any, ...]] = set()
    for name, value in state_dict.items():
        tensor = value.detach()
        if tensor.is_meta:
            raise CheckpointError(
                f"{name}: expected a tensor with values, got one on the meta device."
            )
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        if tied and name in _TIED and place in places:
            continue
        written[name] = tensor.clone() if storage in storages else tensor
        places.add(place)
        storages.add(storage)
    return written


def _plan(tensors: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    """File name -> tensors in it, filled in order; a tensor above the limit has a file of its own."""
    parts: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += tensor.nbytes
    if len(parts) == 1:
        return {_WHOLE: parts[0]}
    return {
        f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)
    }


def _index_text(files: Mapping[str, list[str]], tensors: Mapping[str, Tensor]) -> str:
    index = {
        "metadata": {
            "total_parameters": sum(t.numel() for t in tensors.values()),
            "total_size": sum(t.nbytes for t in tensors.values()),
        },
        "weight_map": dict(sorted((name, file) for file, names in files.items() for name in names)),
    }
    return json.dumps(index, indent=2) + "\n"


def _config_text(config: Any, tensors: Mapping[str, Tensor], architecture: str | None) -> str:
    written = copy.deepcopy(config)
    written.dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), config.dtype)
    if architecture is not None:
        written.architectures = [architecture]
    return written.to_json_string()


def _remove_old(folder: Path, written: set[str]) -> None:
    """Weights that an earlier save left under names that this one did not use: a reader might prefer them."""
    for path in folder.iterdir():
        ours = path.name in (_WHOLE, _INDEX) or re.fullmatch(
            r"model-\d{5}-of-\d{5}\.safetensors", path.name
        )
        if ours and path.name not in written:
            path.unlink(missing_ok=True)


def _bytes(size: int | str) -> int:
    found = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", size)
        if isinstance(size, str)
        else None
    )
    if found and found[2].upper() in _UNITS:
        size = int(float(found[1]) * _UNITS[found[2].upper()])
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ArgumentError(
            "max_shard_size", "a number of bytes or a size such as '5GB'", repr(size)
        )
    return size
