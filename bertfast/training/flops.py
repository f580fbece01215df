"""Floating-point operations that a model needs, by the real tokens of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import extension

# Dense bfloat16 FLOP/s by the makers' data sheets.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
_SECONDS = 0.02  # of measuring a CPU


def training_flops(config: Any, lengths: np.ndarray, labels: int) -> float:
    """Of a forward and its backward, which takes twice as many; multiplications and additions are counted.

    Args:
        config: a BertConfig. lengths: of the sequences. labels: rows that the masked-LM head computes.
    """
    hidden, tokens = config.hidden_size, float(lengths.sum())
    layer = tokens * (8 * hidden**2 + 4 * hidden * config.intermediate_size)
    attention = 4 * hidden * float((lengths.astype(np.float64) ** 2).sum())
    head = labels * (2 * hidden**2 + 2 * hidden * config.vocab_size)
    return 3 * (config.num_hidden_layers * (layer + attention) + head)


def peak(device: torch.device) -> float | None:
    """FLOP/s that the device could do at most; None where that is not known.

    Of a GPU what its maker says of bfloat16; of a CPU what its fp32 multiply-adds reach now, measured in 0.02 s.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((rate for key, rate in _PEAKS.items() if key in name), None)
    if extension.cpu is None:
        return None
    return extension.cpu.fma_peak(torch.get_num_threads(), _SECONDS)
