"""The distinct bytes that executed kernels touch, against the formula of the fused design (testing.costs)."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from bertfast import dispatch, testing
from bertfast.testing import Case, costs
from gpu_code.gates import budgets
from gpu_code.gates.census import launched
from gpu_code.triton_driver import emulated

_LENGTHS = (128,) * 8
CASES = {
    "embedding": Case("bytes", _LENGTHS, 256, 2000),
    "qkv_projection": Case("bytes", _LENGTHS, 256, 256, heads=4),
    "attention": Case("bytes", (256, 256), outer=128, heads=2, p=0.1),
    "linear_gelu": Case("bytes", _LENGTHS, 256, 512),
    "linear_layernorm": Case("bytes", _LENGTHS, 512, 256, p=0.1),
    "gelu_layernorm": Case("bytes", _LENGTHS, 256, 256),
    "masked_cross_entropy": Case("bytes", (128, 128), 256, 2048),
}


@pytest.mark.parametrize("operation", testing.OPERATIONS)
def test_bytes(operation):
    case = CASES[operation]
    inputs = testing.make_inputs(operation, case, torch.bfloat16)
    with emulated() as device:
        counted = {
            d: sum(map(_touched, x)) for d, x in launched(device, operation, case, torch.bfloat16)
        }
    for direction, found in counted.items():
        least = costs.cost(operation, direction, inputs, save=True).bytes
        allowed = budgets.bytes_allowed(operation, direction)
        assert found <= allowed * least, (
            f"{operation} {direction}: {found:,.0f} bytes, {found / least:.3f} of the formula's {least:,.0f}"
        )
        assert found > 0.5 * least, f"{operation} {direction}: the count or the formula is wrong"


def _touched(launch) -> int:
    report = launch.report
    return sum(report.bytes_read.values()) + sum(report.bytes_written.values())


def test_a_second_pass_is_over_budget():
    """What the budget is for: a forward that runs its kernels twice touches twice the bytes."""
    case = CASES["linear_gelu"]
    inputs = testing.make_inputs("linear_gelu", case, torch.bfloat16)
    with emulated() as device, dispatch.use_backend("triton"), torch.no_grad():
        for _ in range(2):
            testing.public("linear_gelu")(**inputs)
    found = sum(map(_touched, device.launches))
    assert found > budgets.BYTES * costs.cost("linear_gelu", "forward", inputs).bytes
