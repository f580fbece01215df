"""What each card needs at least for the operations and the model as shipped: rows of the predicted, untimed table.

Counted of the backend cuda without a GPU (counted.json; tests/gpu_code/counted.py writes it, a test holds it to the
shipped host code): operations; bytes, of the fused design (harness.costs) and of passes that are kernels of their own;
instructions of the hot loops, as many as their gates allow for each tensor-core instruction; launches. A prediction is
the longest of operations over peak, bytes over bandwidth and instructions over issue rate, each from the data sheet.
What lies between launches is not in it: their number stands beside it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch

import harness
from harness.costs import Cost

from . import gpu

DTYPE = torch.bfloat16
LAYERS = 12
COUNTED = Path(__file__).parent / "counted.json"
TENSOR_CORE = 4096  # operations of an m16n8k16, which a warp issues
MEETINGS = 2  # of two gradients in a layer's backward, a kernel each
_LAYER = ("qkv_projection", "attention", "attention_output", "linear_gelu", "linear_layernorm")
# attention_output: the other dense layer with a residual, as wide as the model
PARTS = (*harness.OPERATIONS, "attention_output")


class Work(NamedTuple):
    """instructions: of all warps, in hot loops with tensor cores. launches: kernels, memsets not counted."""

    cost: Cost
    instructions: float
    launches: int


def rows() -> list[dict]:
    """A row an operation, load and direction, then those of BERT-base without its pooler."""
    found = []
    for load in gpu.LOADS:
        for backward in (False, True):
            found += [
                _row(name, load, backward, parts_of(name, load, backward))
                for name in harness.OPERATIONS
            ]
            found.append(_row("model", load, backward, model(load, backward)))
    return found


def model(load: str, backward: bool) -> list[Work]:
    """The parts of BERT-base without its pooler, which run one after the other; those of a layer twelve times."""
    found = parts_of("embedding", load, backward)
    layer = [work for name in _LAYER for work in parts_of(name, load, backward)]
    if backward:
        gradient = sum(gpu.LOADS[load]) * gpu.HIDDEN * DTYPE.itemsize
        layer += [Work(Cost(0, 3 * gradient), 0.0, 1)] * MEETINGS
    return found + layer * LAYERS


def parts_of(part: str, load: str, backward: bool) -> list[Work]:
    """The forward; or that with what it saves, and the backward."""
    found = counted()[load][part]
    return [_work(found[name]) for name in (("saving", "backward") if backward else ("forward",))]


def _work(found: dict) -> Work:
    issued = (found["issued"] or 0.0) * found["flops"] / TENSOR_CORE
    return Work(Cost(found["flops"], found["bytes"]), issued, len(found["launches"]))


@functools.cache
def counted() -> dict:
    """load -> part -> "forward", "saving" (a forward that a backward follows), "backward" -> what was counted."""
    return json.loads(COUNTED.read_text())


def seconds(work: Work, roof: gpu.Roof) -> float:
    """What the card needs at least."""
    return max(gpu.predicted(work.cost, roof), work.instructions / roof.issued)


def _row(name: str, load: str, backward: bool, parts: list[Work]) -> dict:
    """The parts run one after the other, so their least times add up."""
    least = {card: sum(seconds(part, roof) for part in parts) for card, roof in gpu.ROOFS.items()}
    return {
        "operation": name,
        "load": load,
        "direction": "forward + backward" if backward else "forward",
        "gflops": round(sum(part.cost.flops for part in parts) / 1e9, 3),
        "mbytes": round(sum(part.cost.bytes for part in parts) / 1e6, 3),
        "minstructions": round(sum(part.instructions for part in parts) / 1e6, 3),
        "launches": sum(part.launches for part in parts),
        "microseconds": {card: round(time * 1e6, 2) for card, time in least.items()},
    }
