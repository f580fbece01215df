"""Dropout of the model: torch's modules say how much and when, the operations drop, by the bits of `ops/_philox.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import _philox


def p_and_seed(module: nn.Module, device: torch.device) -> dict:
    """The arguments p and seed of an operation; a seed is drawn only where something is dropped."""
    p = getattr(module, "p", 0.0) if module.training else 0.0
    if p == 0:
        return {"p": 0.0, "seed": None}
    return {"p": p, "seed": _philox.draw_seed(device)}


def drops(module: nn.Module) -> bool:
    """Whether anything is dropped inside `module` now."""
    dropouts = (m for m in module.modules() if isinstance(m, nn.Dropout))
    return any(dropout.training and dropout.p > 0 for dropout in dropouts)


def drop(module: nn.Module, x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Dropout of [T,H] where the modules run one by one; a hooked or replaced module is called."""
    if type(module) is not nn.Dropout or module._forward_hooks or module._forward_pre_hooks:
        return module(x)
    p, seed = p_and_seed(module, x.device).values()
    keep = _philox.hidden_keep(seed, p, cu_seqlens, *x.shape) if p > 0 else None
    return _philox.dropout(x, p, keep)
