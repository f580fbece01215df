"""An engine without a model, for the test of the protocol: it counts its calls and fails on demand."""

from __future__ import annotations

import os

import numpy as np

from benchmarks.peers.engines import Base, Job


class Engine(Base):
    def __init__(self, job: Job):
        super().__init__(job)
        self.factor = job.options["factor"]
        print("what a library prints must not disturb the answers")
        os.system("echo nor what its children print")

    def prepare(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        if not batch["attention_mask"].any():
            raise ValueError("no token\nand more")
        return batch["input_ids"][..., None]

    def forward(self, prepared: np.ndarray) -> np.ndarray:
        if self.factor == "die":
            os._exit(3)
        return prepared * self.factor
