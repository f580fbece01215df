"""A Trainer that keeps its losses; apart from ecosystem.py, as importing Trainer needs what old environments lack."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Trainer


class Recorded(Trainer):
    """Keeps each step's loss: what transformers 4 logs is rounded to four digits."""

    def __init__(self, *arguments: Any, **fields: Any):
        super().__init__(*arguments, **fields)
        self.losses: list[Tensor] = []

    def training_step(self, *arguments: Any, **fields: Any) -> Tensor:
        self.losses.append(super().training_step(*arguments, **fields).clone())
        return self.losses[-1]
