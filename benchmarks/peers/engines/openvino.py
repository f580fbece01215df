"""OpenVINO; int8: NNCF's post-training quantization for transformers, calibrated on sentences."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .. import text
from . import Base, Job, onnx

CALIBRATION = 128  # sentences


class Engine(Base):
    """Options: precision, "fp32" or "int8"."""

    def __init__(self, job: Job):
        import openvino

        super().__init__(job)
        settings = {
            "INFERENCE_NUM_THREADS": job.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
        }
        compiled = openvino.Core().compile_model(job.converted / "model.xml", "CPU", settings)
        self.request = compiled.create_infer_request()

    @staticmethod
    def convert(job: Job) -> None:
        import openvino

        file = job.converted / "plain.onnx"
        onnx.export(job, file)
        model = openvino.convert_model(file)
        if job.options["precision"] == "int8":
            model = _quantize(model, job)
        openvino.save_model(model, job.converted / "model.xml", compress_to_fp16=False)

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch

    def forward(self, prepared: dict[str, np.ndarray]) -> np.ndarray:
        return self.request.infer(prepared, share_inputs=True, share_outputs=True)[0]


def _quantize(model: Any, job: Job) -> Any:
    import nncf

    texts = json.loads((job.inputs / f"{text.LOAD}.json").read_text(encoding="utf-8"))[:CALIBRATION]
    rows = [[encoding.ids] for encoding in text.tokenizer(job.model).encode_batch_fast(texts)]
    return nncf.quantize(
        model,
        nncf.Dataset([text.pad(row) for row in rows]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATION,
    )
