"""May a fused operation stand in for the modules inside a layer? Only while nobody could see it.

A hook, a parametrization, a replaced module (LoRA, quantized) or a patched `forward` must be
honoured: then the layer calls its modules instead. Asked on every call, so it only looks into
dictionaries (a few microseconds a layer).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .. import dispatch

# One row a module: index of its parent among [the layer itself, *the rows before], name, exact type.
Parts = tuple[tuple[int, str, type[nn.Module]], ...]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BIASED = (nn.Linear, nn.LayerNorm)
_WEIGHTED = (*_BIASED, nn.Embedding)


def parts(types: Mapping[str, type[nn.Module]]) -> Parts:
    """The table for `fused_parts`, from the exact type that each path must have, parents first."""
    paths = list(types)
    rows = []
    for path, kind in types.items():
        parent, _, name = path.rpartition(".")
        rows.append((paths.index(parent) + 1 if parent else 0, name, kind))
    return tuple(rows)


def fused_parts(layer: nn.Module, table: Parts, name: str) -> list[nn.Module] | None:
    """The modules inside `layer`, in the table's order, if a fused operation may stand in for them.

    Else None: the reason is kept as `layer.reason` and written into every open `dispatch.record()`.
    """
    found = _find(layer, table)
    reason = found if isinstance(found, str) else None
    if layer.reason != reason and not torch.compiler.is_compiling():
        layer.reason = reason
    if reason is None:
        return found[1:]
    note(name, "modules", reason)
    return None


def _watching_all() -> bool:
    """Whether a hook is registered for all modules (torch 2.6 has no function that tells)."""
    return any(getattr(torch_module, "_global" + hooks) for hooks in _HOOKS)


def watched(module: nn.Module) -> bool:
    """Whether somebody may see what goes into `module` and comes out: a hook, or a forward that was replaced."""
    held = module.__dict__
    return (
        _watching_all()
        or any(held[hooks] for hooks in _HOOKS)
        or "forward" in held
        or held.get("_compiled_call_impl") is not None
    )


def note(operation: str, form: str, reason: str) -> None:
    """Write into every open `dispatch.record()` why no fused operation ran."""
    if not torch.compiler.is_compiling():
        dispatch.note(operation, "forward", form, {"fused": reason})


def parameters(module: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a module that `fused_parts` gave; quicker than reading its attributes."""
    held = module._parameters
    return held["weight"], held["bias"]


def _find(layer: nn.Module, table: Parts) -> list[nn.Module] | str:
    if _watching_all():
        return "a hook is registered for all modules"
    found = [layer]
    for parent, name, kind in table:
        child = found[parent]._modules.get(name)
        if type(child) is not kind:
            return f"{_path(table, parent, name)} is a {type(child).__name__}"
        held = child.__dict__
        owned = held["_parameters"]
        if (
            held["_forward_hooks"]
            or held["_forward_pre_hooks"]
            or held["_backward_hooks"]
            or held["_backward_pre_hooks"]
            or "forward" in held
            or (kind in _WEIGHTED and owned.get("weight") is None)
            or (kind in _BIASED and owned.get("bias") is None)
            or (kind is nn.Embedding and _looks_up_oddly(child))
        ):
            return f"{_path(table, parent, name)} {_oddity(child)}"
        found.append(child)
    return found


def _looks_up_oddly(module: nn.Embedding) -> bool:
    return module.max_norm is not None or module.sparse or module.scale_grad_by_freq


def _oddity(module: nn.Module) -> str:
    hooks = [kind.strip("_").replace("_", " ") for kind in _HOOKS if getattr(module, kind)]
    if hooks:
        return f"has {' and '.join(hooks)}"
    if "forward" in module.__dict__:
        return "has a forward of its own"
    if type(module) is nn.Embedding and _looks_up_oddly(module):
        return "has max_norm, sparse or scale_grad_by_freq set"
    return "has no weight or no bias among its parameters"


def _path(table: Parts, parent: int, name: str) -> str:
    names = [name]
    while parent:
        parent, name, _ = table[parent - 1]
        names.append(name)
    return ".".join(reversed(names))
