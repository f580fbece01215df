"""CTranslate2's Encoder; int8: its own quantized weights. Its model has the pooler too."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import Base, Job

TYPES = {"fp32": "float32", "int8": "int8"}


class Engine(Base):
    """Options: precision, "fp32" or "int8"."""

    def __init__(self, job: Job):
        import ctranslate2

        super().__init__(job)
        self.view = ctranslate2.StorageView.from_array
        self.encoder = ctranslate2.Encoder(
            str(job.converted / "model"),
            compute_type=TYPES[job.options["precision"]],
            inter_threads=1,
            intra_threads=job.threads,
        )

    @staticmethod
    def convert(job: Job) -> None:
        from ctranslate2.converters import TransformersConverter

        kind = TYPES[job.options["precision"]]
        TransformersConverter(str(job.model)).convert(
            str(job.converted / "model"), quantization=kind
        )

    def prepare(self, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
        lengths = batch["attention_mask"].sum(1)
        return self.view(batch["input_ids"].astype(np.int32)), self.view(lengths.astype(np.int32))

    def forward(self, prepared: tuple[Any, Any]) -> np.ndarray:
        return np.asarray(self.encoder.forward_batch(*prepared).last_hidden_state)
