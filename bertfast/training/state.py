"""Checkpoints of a run: whole or not there. `step-N` appears by a rename, after everything in it is on the disk.

A checkpoint holds the model as transformers saves it, the optimizer's moments by the parameters' names, and what the
run has to know: its step, recipe, store, threads and tuning table. Nothing of a random generator, as there is none.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._files import flush, read_json, write_json
from ..checkpoint.hub import require
from ..data.shards import sha256
from ..errors import CheckpointError

FOLDER = "checkpoints"
MODEL, OPTIMIZER, STATE, HASHES = "model", "optimizer.safetensors", "state.json", "hashes.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")

logger = logging.getLogger("bertfast")


class Saved(NamedTuple):
    """A checkpoint that verified.

    Fields:
        folder: `step-N`. state: what its state.json holds.
    """

    folder: Path
    state: dict[str, Any]


def write(run: Path, step: int, state: Mapping[str, Any], save: Callable[[Path], None]) -> Path:
    """A checkpoint of a step.

    Args:
        save: puts the model and the optimizer into the folder that it is given.

    Raises:
        OSError: the disk is full or cannot be written; what was there before is as it was.
    """
    parent = run / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    target = folder_of(run, step)
    temporary = parent / f"{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        save(temporary)
        write_json(temporary / STATE, dict(state))
        hashes = {str(path.relative_to(temporary)): sha256(path) for path in _files(temporary)}
        write_json(temporary / HASHES, hashes)
        _flush(temporary)
        if target.exists():  # of a run that was resumed from an older one
            _remove(target)
        os.rename(temporary, target)
        flush(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def folder_of(run: Path, step: int) -> Path:
    """Of the checkpoint of a step."""
    return run / FOLDER / f"step-{step:08d}"


def newest(run: Path) -> Saved | None:
    """The newest checkpoint whose files are as their hashes say; what is damaged is passed over, and said."""
    for folder in sorted(_folders(run), reverse=True):
        try:
            verify(folder)
            return Saved(folder, read_json(folder / STATE, CheckpointError))
        except CheckpointError as error:
            logger.warning("%s", error)
    return None


def has_any(run: Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return any(_folders(run))


def tidy(run: Path, keep: int | None = None, best: int | None = None) -> None:
    """Remove what an ended write has left and, with `keep`, all checkpoints but so many of the newest and that of the
    step `best`."""
    for folder in (run / FOLDER).glob("*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)
    if keep is not None:
        for folder in sorted(_folders(run))[:-keep]:
            if best is None or folder != folder_of(run, best):
                _remove(folder)


def save_optimizer(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The moments, as whole tensors by the parameters' names, into a file.

    With `path` None only what all processes do together to make tensors whole.
    """
    found: dict[str, Tensor] = {}
    steps = 0
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for moment in _MOMENTS:
            if moment in state:
                found[f"{name}.{moment}"] = whole(state[moment]).cpu().contiguous()
                steps = int(state["step"])
    if path is not None:
        safetensors = require("safetensors.torch", "Checkpoints")
        safetensors.save_file(found, path, metadata={"step": str(steps)})


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer without state the moments of a file.

    Raises:
        CheckpointError: they are not those of this model.
    """
    safetensors = require("safetensors", "Checkpoints")
    with safetensors.safe_open(path, framework="pt") as file:
        names = set(file.keys())
        step = float((file.metadata() or {}).get("step", 0))
        for name, parameter in model.named_parameters():
            wanted = [f"{name}.{moment}" for moment in _MOMENTS]
            if not parameter.requires_grad or not names:
                continue
            if not names.issuperset(wanted):
                raise CheckpointError(
                    f"{path}: expected {wanted[0]}, as the model has that weight."
                )
            moments = [like(parameter, file.get_tensor(item)) for item in wanted]
            state = dict(zip(_MOMENTS, moments, strict=True))
            optimizer.state[parameter] = {"step": torch.tensor(step), **state}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that processes hold parts of."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value on the device of a parameter, in parts where that is."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _folders(run: Path) -> Iterator[Path]:
    for folder in (run / FOLDER).glob("step-*"):
        if re.fullmatch(r"step-\d+", folder.name):
            yield folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def verify(folder: Path) -> None:
    """Raises CheckpointError for a checkpoint's file that is not as its hash says."""
    hashes = read_json(folder / HASHES, CheckpointError)
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise CheckpointError(f"{path}: damaged, its hash is not the one in {HASHES}.")


def _remove(folder: Path) -> None:
    """A folder that is half removed has no checkpoint's name."""
    gone = folder.with_name(f"{folder.name}.old.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone)


def _flush(folder: Path) -> None:
    """A folder with all that is in it."""
    for path in (*folder.rglob("*"), folder):
        flush(path)
