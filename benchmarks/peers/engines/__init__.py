"""What the comparison with other engines runs: a file an engine, each with a class `Engine` that derives from `Base`.

A worker process imports one of them, and with it that engine's packages alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import text

# Intel's packages count their users over the network unless they find this package missing.
sys.modules.setdefault("openvino_telemetry", None)


class Job(NamedTuple):
    """What a worker is to run.

    Fields:
        engine: the module of the engine.
        model: a checkpoint folder of transformers and sentence-transformers.
        converted: a folder for what the engine makes of the model.
        inputs: the folder of the loads, `<load>.npz` or `<load>.json`.
        threads: how many threads the engine may use.
        options: what the contender asks of its engine.
    """

    engine: str
    model: Path
    converted: Path
    inputs: Path
    threads: int
    options: dict[str, Any]


class Base:
    """An engine that has loaded its model. `__init__` loads."""

    def __init__(self, job: Job):
        self.job = job

    @staticmethod
    def convert(job: Job) -> None:
        """Make the engine's own form of the model, in a process before the one that is measured."""

    def begin(self, varying: bool) -> None:
        """A load begins; varying: its batches differ in shape."""

    def prepare(self, batch: dict[str, np.ndarray]) -> Any:
        """The inputs in the engine's own form.

        Args:
            batch: input_ids and attention_mask, int64 [B,S], zeros at padding.
        """
        raise NotImplementedError

    def forward(self, prepared: Any) -> np.ndarray:
        """Hidden states of the last layer [B,S,H]; this is what is timed."""
        raise NotImplementedError

    def open_text(self) -> None:
        """Load what `encode` needs besides the model."""
        self.tokenizer = text.tokenizer(self.job.model)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors [N,H] of texts, as users of an engine without a tokenizer do it; timed as a whole."""
        return text.encode(self.tokenizer, texts, lambda batch: self.forward(self.prepare(batch)))
