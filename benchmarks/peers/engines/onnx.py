"""ONNX Runtime on the graph that its own optimizer for transformers fuses; int8: its dynamic quantization of that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from . import Base, Job


class Engine(Base):
    """Options: precision, "fp32" or "int8"."""

    def __init__(self, job: Job):
        import onnxruntime

        super().__init__(job)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            _file(job, job.options["precision"]), options, providers=["CPUExecutionProvider"]
        )

    @staticmethod
    def convert(job: Job) -> None:
        export(job, job.converted / "plain.onnx")
        _fuse(job)
        if job.options["precision"] == "int8":
            _quantize(job)

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch

    def forward(self, prepared: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run(None, prepared)[0]


def export(job: Job, file: Path) -> None:
    """The model as ONNX, batch and length left open. The exporter is the one whose graph the optimizer knows."""
    import torch

    from . import sdpa

    class States(torch.nn.Module):
        """The model with tensors alone as inputs and output."""

        def __init__(self):
            super().__init__()
            self.model = sdpa.load(job._replace(options={"attention": "eager"}))

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask).last_hidden_state

    ids = torch.arange(1000, 1018).reshape(2, 9)
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "hidden"]}
    with torch.no_grad():
        torch.onnx.export(
            States(), (ids, torch.ones_like(ids)), file, dynamo=False,
            input_names=names, output_names=["hidden"], dynamic_axes=axes,
        )  # fmt: skip


def _fuse(job: Job) -> None:
    from onnxruntime.transformers import optimizer

    config = json.loads((job.model / "config.json").read_text(encoding="utf-8"))
    fused = optimizer.optimize_model(
        str(job.converted / "plain.onnx"),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
    )
    found = fused.get_fused_operator_statistics()
    if found["Attention"] != config["num_hidden_layers"]:
        raise RuntimeError(f"the optimizer fused {found['Attention']} of the layers' attentions")
    fused.save_model_to_file(_file(job, "fp32"))


def _quantize(job: Job) -> None:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        _file(job, "fp32"),
        _file(job, "int8"),
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # of what fused nodes return
    )


def _file(job: Job, precision: str) -> str:
    return str(job.converted / f"{precision}.onnx")
