"""Checkpoints: finding one (`resolve`), reading its tensors, giving them to a model, and saving.

Tensors are read into memory of their own and freed one by one as a model takes them, so that loading peaks near one
copy of the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .hub import CONFIG_FILES, resolve
from .reading import read_state_dict
from .writing import save

__all__ = [
    "CONFIG_FILES",
    "Report",
    "convert_names",
    "load_into",
    "read_state_dict",
    "resolve",
    "save",
]

logger = logging.getLogger("bertfast")

_HEADS = ("cls.", "classifier.", "qa_outputs.")
_OLD_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


# Names


def convert_names(
    state_dict: Mapping[str, Tensor], model_keys: Collection[str]
) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names of a model.

    LayerNorm.gamma and .beta become weight and bias; the prefix ``bert.`` is added or taken away as the model has it.
    Left out: buffers of old releases, the pooler where the model has none, and heads where it is a plain encoder. A
    name that fits nothing stays as it is. A tensor that has the model's name already wins over a converted one.

    Args:
        state_dict: the checkpoint's tensors; not changed.
        model_keys: the names in the model's own state_dict.
    """
    keys = set(model_keys)
    unneeded = _unneeded(keys)
    converted = {name: tensor for name, tensor in state_dict.items() if name in keys}
    for name, tensor in state_dict.items():
        target = _model_name(name, keys)
        if target in keys:
            converted.setdefault(target, tensor)
        elif not unneeded(name):
            converted[name] = tensor
    return converted


def _unneeded(keys: Collection[str]) -> Callable[[str], bool]:
    """Which of the checkpoint's names that fit nothing a model with these keys does without, as a matter of course."""
    heads = () if any(key.startswith("bert.") for key in keys) else _HEADS
    pooler = () if any("pooler." in key for key in keys) else ("pooler.", "bert.pooler.")
    return lambda name: name.endswith(_OLD_BUFFERS) or name.startswith((*heads, *pooler))


def _model_name(name: str, keys: Collection[str]) -> str:
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name not in keys and name.endswith(old):
            name = name.removesuffix(old) + new
    candidates = (name, name.removeprefix("bert."), f"bert.{name}")
    return next((candidate for candidate in candidates if candidate in keys), name)


# Into a model


@dataclass(frozen=True)
class Report:
    """What loading a checkpoint left open.

    Fields:
        missing: names of the model's tensors that the checkpoint lacks.
        unexpected: names in the checkpoint that the model has no place for.
        mismatched: (name, the model's shape, the checkpoint's shape), only with ignore_mismatched_sizes.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"not in the checkpoint, so newly initialised: {_some(self.missing)}")
        if self.mismatched:
            shapes = [
                f"{name} {list(want)} (there {list(got)})" for name, want, got in self.mismatched
            ]
            parts.append(f"of another shape there, so newly initialised: {_some(shapes)}")
        if self.unexpected:
            parts.append(f"in the checkpoint but not used: {_some(self.unexpected)}")
        return "; ".join(parts) if parts else "every weight was loaded"


def _some(names: Collection[str], count: int = 6) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(list(names)[:count])}{more}"


@torch.no_grad()
def load_into(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    *,
    initialize: Callable[[nn.Module], None] | None = None,
    device: torch.device | str | None = None,
    assign: bool = False,
    ignore_mismatched_sizes: bool = False,
    source: str = "the checkpoint",
) -> Report:
    """Give a model the tensors of a checkpoint, converting names, each in the dtype that the model has for it.

    A parameter with memory is written in place. One on the meta device is replaced by a new parameter on `device`.
    Tied parameters stay tied. What is missing is reported and logged, not an error. Nothing is changed on an error.

    Args:
        model: any module with Hugging Face's names, with memory or on the meta device.
        state_dict: what `read_state_dict` gave; it is emptied, so that each tensor is freed when it has been used.
        initialize: called with every submodule that lacks a tensor, before the others are filled in; without it a
            missing parameter stays as it is (on the meta device too).
        device: where parameters of the meta device are made; default the CPU.
        assign: take a tensor itself for a parameter of the meta device where dtype and device agree, instead of a
            copy; only for a state_dict that nobody else uses.
        ignore_mismatched_sizes: treat a tensor of the wrong shape as missing.
        source: what the messages call the checkpoint.

    Raises:
        CheckpointError: a shape does not match (name, both shapes), a weight is not of a floating dtype, or no name
            of the checkpoint fits the model.
    """
    groups = _groups(model)
    values = convert_names(state_dict, [name for names, _ in groups for name in names])
    mismatched = _compare(groups, values, source, ignore_mismatched_sizes)
    state_dict.clear()
    for name, _, _ in mismatched:
        del values[name]
    lacking = [names for names, _ in groups if not any(name in values for name in names)]
    if initialize is not None and lacking:
        _initialize(
            model, groups, {names[0].rpartition(".")[0] for names in lacking}, initialize, device
        )
        groups = _groups(model)
    taken: set[int] | None = set() if assign else None
    for names, target in groups:
        found = [values.pop(name) for name in names if name in values]
        if found:
            _give(model, names, target, found[0], device, taken)
    odd = {name for name, _, _ in mismatched}
    report = Report(
        missing=tuple(names[0] for names in lacking if not odd.intersection(names)),
        unexpected=tuple(values),
        mismatched=tuple(mismatched),
    )
    if report:
        logger.warning("%s from %s: %s.", type(model).__name__, source, report)
    return report


def _groups(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every tensor of the model's state_dict with its names: more than one where it is tied."""
    groups: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(groups.values())


def _compare(
    groups: list[tuple[list[str], Tensor]],
    values: Mapping[str, Tensor],
    source: str,
    ignore_mismatched_sizes: bool,
) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """The values whose shape is not the model's, or an error."""
    targets = {name: target for names, target in groups for name in names}
    hits = [name for name in values if name in targets]
    if targets and not hits:
        raise CheckpointError(
            f"{source}: expected weights such as {_some(list(targets), 3)}, got none of the model's names, only "
            f"{_some(list(values), 3) or 'weights of heads or nothing'}. It is a checkpoint of another architecture."
        )
    for name in hits:
        if targets[name].is_floating_point() and not values[name].is_floating_point():
            raise CheckpointError(
                f"{source}: {name}: expected a floating dtype, got {values[name].dtype} (quantized weights?)."
            )
    wrong = [
        (name, tuple(targets[name].shape), tuple(values[name].shape))
        for name in hits
        if targets[name].shape != values[name].shape
    ]
    if wrong and not ignore_mismatched_sizes:
        lines = [f"{name}: expected {list(want)}, got {list(got)}" for name, want, got in wrong]
        raise CheckpointError(f"{source}: shapes that do not fit the config: {_some(lines)}.")
    return wrong


def _initialize(
    model: nn.Module,
    groups: list[tuple[list[str], Tensor]],
    owners: set[str],
    initialize: Callable[[nn.Module], None],
    device: torch.device | str | None,
) -> None:
    """Start weights for the submodules `owners`, which get memory first where they have none."""
    for names, target in groups:
        if target.is_meta and any(name.rpartition(".")[0] in owners for name in names):
            _replace(model, names, target, torch.empty_like(target, device=device or "cpu"))
    for owner in sorted(owners):
        initialize(model.get_submodule(owner))


def _give(
    model: nn.Module,
    names: list[str],
    target: Tensor,
    value: Tensor,
    device: torch.device | str | None,
    taken: set[int] | None,
) -> None:
    """Put a value where the model has `target`; `taken`: the storages that parameters use already, None to copy."""
    if not target.is_meta:
        target.copy_(value)
        return
    moved = value.to(device or "cpu", target.dtype)
    if moved is value and (taken is None or not _sole(value, taken)):
        moved = value.clone(memory_format=torch.contiguous_format)
    if taken is not None:
        taken.add(moved.untyped_storage().data_ptr())
    _replace(model, names, target, moved.contiguous())


def _sole(value: Tensor, taken: set[int]) -> bool:
    """Whether a tensor is all there is in its memory, and no parameter has that memory yet."""
    storage = value.untyped_storage()
    return (
        value.is_contiguous()
        and storage.nbytes() == value.nbytes
        and storage.data_ptr() not in taken
    )


def _replace(model: nn.Module, names: list[str], target: Tensor, value: Tensor) -> None:
    if isinstance(target, nn.Parameter):
        value = nn.Parameter(value, requires_grad=target.requires_grad)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, value)
