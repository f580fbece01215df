"""Every shipped CUDA kernel is held to the accuracy check: the cases that tests/ops executes launch them all.

Nothing is executed here, for what is launched follows from sizes, dtype and the number of multiprocessors alone.
"""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch
from gpu_code import cuda_driver, nvcc
from gpu_code.backends import allowing_tf32

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}


def test_every_kernel_is_compared():
    with cuda_driver.emulated(execute=False) as device, dispatch.use_backend("cuda"):
        for name, dtype in DTYPES.items():
            with allowing_tf32(name == "tf32"):
                for operation in harness.OPERATIONS:
                    for case in harness.cases(operation):
                        if harness.refusal(operation, "forward", case, dtype, "cuda"):
                            continue
                        harness.differentiate(operation, case, dtype, harness.public(operation))
    launched = {launch.name for launch in device.launches}
    assert not set(cuda_driver.entries()) - launched
