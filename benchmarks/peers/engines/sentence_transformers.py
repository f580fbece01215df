"""sentence-transformers, from texts to vectors."""

from __future__ import annotations

import numpy as np
import torch

from . import Base, Job


class Engine(Base):
    def __init__(self, job: Job):
        from sentence_transformers import SentenceTransformer

        super().__init__(job)
        torch.set_num_threads(job.threads)
        self.model = SentenceTransformer(str(job.model), device="cpu")

    def open_text(self) -> None:
        """It has its own tokenizer."""

    def encode(self, texts: list[str]) -> np.ndarray:
        return self.model.encode(texts, show_progress_bar=False)
