"""Small runs: how they are made, and what is compared of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bertfast.training.recipe import Recipe, from_dict

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def recipe_of(store: Path, **changes: Any) -> Recipe:
    """12 steps of 8 sequences with dropout, in two lengths, saved at every fourth."""
    fields = {
        "store": str(store),
        "config": CONFIG,
        "phases": [
            {"length": 24, "steps": 8, "batch": 8, "micro_tokens": 100},
            {"length": 48, "steps": 4, "batch": 8, "micro_tokens": 200},
        ],
        "held_out": 0.1,
        "learning_rate": 1e-3,
        "log_every": 3,
        "save_every": 4,
        "seed": 5,
    }
    return from_dict({**fields, **changes})


def digest(run: Path, step: int = 12) -> str:
    """Of the weights and the moments of a step."""
    folder, found = run / "checkpoints" / f"step-{step:08d}", hashlib.sha256()
    for name in ("model/model.safetensors", "optimizer.safetensors"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()
