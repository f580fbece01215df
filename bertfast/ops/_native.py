"""What the launchers of native kernels share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import extension
from ._philox import keep_scale, threshold

_NO_DROPOUT = {"seed": 0, "example_ids": 0, "threshold": 0, "scale": 1.0}


def supports(call) -> str | None:
    """None where the C++ backend computes this call, else the reason."""
    return extension.refuses(call.lead)


def dropout(p: float, seed: Tensor | None, example_ids: Tensor | None) -> dict[str, Any]:
    """The fields of csrc/common/dropout.h; example_ids contiguous."""
    if p == 0:  # what was not checked is not read
        return _NO_DROPOUT
    return {
        "seed": seed.data_ptr(),
        "example_ids": extension.pointer(example_ids),
        "threshold": threshold(p),
        "scale": keep_scale(p),
    }


def sequences(cu_seqlens: Tensor | None) -> int:
    """How many sequences there are; 0 where the kernel need not know."""
    return 0 if cu_seqlens is None else cu_seqlens.numel() - 1
