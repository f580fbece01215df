"""Every shipped CUDA kernel is held to the accuracy check, or to bits that are: the cases that tests/ops executes, the
layers of test_cuda_encoder.py, and a projection of test_cublaslt.py launch them all.

Nothing is executed here, for what is launched follows from sizes, dtype and the number of multiprocessors alone.
"""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch
from bertfast.ops import encoder
from gpu_code import cublaslt, cuda_driver, nvcc
from gpu_code.backends import allowing_tf32
from harness import layers

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}


def test_every_kernel_is_compared(monkeypatch):
    with cuda_driver.emulated(execute=False) as device, dispatch.use_backend("cuda"):
        for name, dtype in DTYPES.items():
            with allowing_tf32(name == "tf32"):
                for operation in harness.OPERATIONS:
                    for case in harness.cases(operation):
                        if harness.refusal(operation, "forward", case, dtype, "cuda"):
                            continue
                        harness.differentiate(operation, case, dtype, harness.public(operation))
                monkeypatch.setattr(encoder, "through_library", lambda: False)
                layers.differentiate(dtype)
        layers.padded()
        case = harness.Case("three", (5, 0, 20), 64, 48, heads=2)  # rows of 16 bytes
        with cublaslt.present(device), dispatch.use_backend("cuda:cublaslt"):
            harness.differentiate(
                "qkv_projection", case, torch.bfloat16, harness.public("qkv_projection")
            )
    launched = {launch.name for launch in device.launches}
    assert not set(cuda_driver.entries()) - launched
