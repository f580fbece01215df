"""What each card needs at least for the operations and the model: rows of the predicted, untimed table."""

from __future__ import annotations

import torch

import harness
from harness import costs
from harness.costs import Cost

from . import gpu

DTYPE = torch.bfloat16
LAYERS = 12
_LAYER = ("qkv_projection", "attention", "attention_output", "linear_gelu", "linear_layernorm")


def rows() -> list[dict]:
    """A row an operation, load and direction, then those of BERT-base without its pooler."""
    found = []
    for load in gpu.LOADS:
        for backward in (False, True):
            parts = {name: cost(name, load, backward) for name in (*harness.OPERATIONS, *_LAYER)}
            model = {"embedding": 1, **dict.fromkeys(_LAYER, LAYERS)}
            found += [_row(name, load, backward, [parts[name]]) for name in harness.OPERATIONS]
            costs_of_model = [parts[name] for name, times in model.items() for _ in range(times)]
            found.append(_row("model", load, backward, costs_of_model))
    return found


def cost(name: str, load: str, backward: bool) -> Cost:
    """Of the forward, or of forward + backward with what the forward saves."""
    case, operation = gpu.case(name, load), name
    if name == "attention_output":  # the other dense layer with a residual, as wide as the model
        operation = "linear_layernorm"
    inputs = harness.make_inputs(operation, case, DTYPE)
    total = costs.cost(operation, "forward", inputs, backward)
    return total + costs.cost(operation, "backward", inputs) if backward else total


def _row(name: str, load: str, backward: bool, parts: list[Cost]) -> dict:
    """The parts run one after the other, so their least times add up."""
    least = {
        card: sum(gpu.predicted(part, roof) for part in parts) for card, roof in gpu.ROOFS.items()
    }
    return {
        "operation": name,
        "load": load,
        "direction": "forward + backward" if backward else "forward",
        "gflops": round(sum(part.flops for part in parts) / 1e9, 3),
        "mbytes": round(sum(part.bytes for part in parts) / 1e6, 3),
        "microseconds": {card: round(seconds * 1e6, 2) for card, seconds in least.items()},
    }
