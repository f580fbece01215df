"""Reading the weights of a checkpoint: safetensors or pickle, whole or in shards.

Nothing that a file holds is ever run, and no file outside the checkpoint is opened on its word.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import read_json
from ..errors import CheckpointError
from .hub import require

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NOT_RUN = "Nothing in it was run. Take the model's safetensors files, or make them on a machine that trusts this file."


def read_state_dict(directory: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name, on the CPU, as they are stored.

    Looked for in this order: model.safetensors, its shards, pytorch_model.bin, its shards. A pickle is read with
    ``weights_only=True``, always.

    Args:
        directory: a local checkpoint directory (`resolve` finds one).

    Returns:
        name -> tensor, each in memory of its own save for tensors that a pickle says are tied.

    Raises:
        CheckpointError: there are no weights, a file is missing, truncated, corrupt or holds code, or an index names
            a file outside the directory.
    """
    folder = Path(directory)
    for name, read in (
        ("model.safetensors", _read_safetensors),
        ("pytorch_model.bin", _read_pickle),
    ):
        if os.path.isfile(folder / name):
            return read(folder / name, None)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, read, Path(name).suffix)
    raise CheckpointError(
        f"{folder}: expected model.safetensors or pytorch_model.bin (or its index and shards), found neither."
    )


def check_files(folder: Path) -> None:
    """Refuse indices that name files elsewhere, safetensors that are not whole, and pickles with code.

    For whoever opens the files himself afterwards; values are not read.

    Raises:
        CheckpointError: naming the file.
    """
    for index in folder.glob("*.index.json"):
        for file in set(_weight_map(index).values()):
            _shard_path(index, file, (".safetensors", ".bin"))
    for path in folder.glob("*.safetensors"):
        _check_safetensors(path)
    for path in folder.glob("pytorch_model*.bin"):
        _check_pickle(path)


def _check_safetensors(path: Path) -> None:
    safetensors = require("safetensors", f"Reading {path.name}")
    try:
        with safetensors.safe_open(str(path), framework="np"):
            pass  # the library holds the header against the size of the file
    except (OSError, safetensors.SafetensorError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a whole safetensors file, got a truncated or corrupt one ({error})."
    )


def _check_pickle(path: Path) -> None:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # of the format before zip: reading it with weights_only is the check
        _read_pickle(path, None)
        return
    if unsafe:
        raise CheckpointError(
            f"{path}: expected a pickle of tensors, got one that asks for {unsafe[0]}. {_NOT_RUN}"
        )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(
            f"{index}: expected a weight_map from tensor to file name, found none."
        )
    return weight_map


def _read_shards(
    index: Path, read: Callable[..., dict[str, Tensor]], suffix: str
) -> dict[str, Tensor]:
    shards: dict[str, list[str]] = {}
    for name, file in _weight_map(index).items():
        shards.setdefault(file, []).append(name)
    paths = {file: _shard_path(index, file, suffix) for file in shards}
    state_dict: dict[str, Tensor] = {}
    for file, names in shards.items():
        state_dict.update(read(paths[file], names))
    return state_dict


def _shard_path(index: Path, file: str, suffix: str | tuple[str, ...]) -> Path:
    """The path of a shard that the index names; refused if it is not a file of this checkpoint."""
    if not re.fullmatch(r"[^/\\\0]+", file) or not file.endswith(suffix):
        raise CheckpointError(
            f"{index}: expected names of files of weights beside it, got {file[:80]!r}. It is not opened."
        )
    path = index.parent / file
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: the shard is missing, though {index.name} names it.")
    folder = Path(os.path.realpath(index.parent))
    allowed = [folder]
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        # The hub's cache: a snapshot links to the blobs of its repository, and those to blobs shared by all.
        allowed += [repository / "blobs", repository.parent / "blobs"]
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(os.path.realpath(place)) for place in allowed):
        raise CheckpointError(f"{path}: expected a file of this checkpoint, got a link out of it.")
    return path


def _read_safetensors(path: Path, names: Collection[str] | None) -> dict[str, Tensor]:
    # Tensors are read straight into memory of their own: the library's memory map would count them twice and break if
    # the file is cut while in use.
    _check_safetensors(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            wanted = _wanted(path, header, names)
            return {name: _read_tensor(file, 8 + length, name, header[name]) for name in wanted}
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _corrupt(path, error) from error


def _read_tensor(file: Any, start: int, name: str, entry: dict[str, Any]) -> Tensor:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(
            f"{file.name}: {name} has the dtype {entry['dtype']}; expected one of {', '.join(_DTYPES)}."
        )
    begin, end = entry["data_offsets"]
    if math.prod(entry["shape"]) * dtype.itemsize != end - begin:
        raise ValueError(f"{name} has {end - begin} bytes for the shape {entry['shape']}")
    tensor = torch.empty(entry["shape"], dtype=dtype)
    file.seek(start + begin)
    if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) != end - begin:
        raise ValueError(f"{name} ends early")
    return tensor


def _read_pickle(path: Path, names: Collection[str] | None) -> dict[str, Tensor]:
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {found[1]}" if found else f"{type(error).__name__}"
        raise CheckpointError(
            f"{path}: expected a pickle of tensors, got one that is corrupt or holds other objects ({what}). {_NOT_RUN}"
        ) from error
    if not isinstance(state_dict, dict):
        raise CheckpointError(
            f"{path}: expected a dict of tensors, got {type(state_dict).__name__}."
        )
    wanted = _wanted(path, state_dict, names)
    for name in wanted:
        value = state_dict[name]
        dense = isinstance(value, Tensor) and value.layout == torch.strided
        if not dense or not isinstance(name, str):
            raise CheckpointError(
                f"{path}: expected dense tensors by name, got {type(value).__name__} as {name!r}."
            )
    return {name: state_dict[name].detach() for name in wanted}


def _wanted(path: Path, found: Mapping[str, Any], names: Collection[str] | None) -> Collection[str]:
    """The tensors to take from a file: all, or those that the index promises."""
    lost = [name for name in names or () if name not in found]
    if lost:
        raise CheckpointError(
            f"{path}: expected the tensor {lost[0]} that the index promises, it is not there."
        )
    return list(found) if names is None else names
