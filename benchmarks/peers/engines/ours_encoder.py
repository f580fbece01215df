"""bertfast's Encoder, from texts to vectors."""

from __future__ import annotations

import numpy as np
import torch

from . import Base, Job


class Engine(Base):
    def __init__(self, job: Job):
        from bertfast import Encoder

        super().__init__(job)
        torch.set_num_threads(job.threads)
        self.encoder = Encoder.from_pretrained(job.model, device="cpu")

    def open_text(self) -> None:
        """It has its own tokenizer."""

    def encode(self, texts: list[str]) -> np.ndarray:
        return self.encoder.encode(texts)
