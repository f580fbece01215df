"""Where a model runs if nobody says."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from .. import dispatch, extension
from ..ops._loading import triton_cannot_run


def default_device() -> torch.device:
    """The current CUDA GPU if torch sees one that a fused backend serves, else the CPU; with backend cpu the CPU."""
    if dispatch.backend() != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        like = SimpleNamespace(device=device, dtype=torch.float32)
        if extension.refuses_cuda(like) is None or triton_cannot_run() is None:
            return device
    return torch.device("cpu")
