"""The backend `eager`: an operation as plain torch computes it, in the tensors' own dtype. The accuracy check's peer.

The reference's formulas without their fp32 in between; statistics stay fp32, as the contracts say.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from ._formulas import in_own_dtype

HALVES = (torch.float16, torch.bfloat16)


def of(reference: ModuleType) -> SimpleNamespace:
    """The backend of one operation, made of its reference."""
    forward, backward = map(in_own_dtype(), (reference.forward, reference.backward))
    return SimpleNamespace(forward=forward, backward=backward, supports=_supports)


def _supports(call) -> str | None:
    if any(isinstance(value, Tensor) and value.dtype in HALVES for value in call):
        return None
    return "float32 and float64: the reference computes the same"
