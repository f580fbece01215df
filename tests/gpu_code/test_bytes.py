"""The distinct bytes that Triton's kernels touch, against the formula of the fused design (harness.costs), and how wide
they and the CUDA kernels, whose PTX is every target's, move them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import harness
from bertfast import dispatch
from gpu_code import nvcc
from gpu_code.backends import running
from gpu_code.gates import budgets
from gpu_code.gates.census import launched
from gpu_code.triton_driver import emulated
from harness import Case, costs

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
_MIXED = ("linear_layernorm", "gelu_layernorm")
RUNS = [
    *CASES.items(),
    *((name, replace(CASES[name], name="mixed", mixed=True)) for name in _MIXED),
]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize(("operation", "case"), RUNS, ids=[f"{o}-{c.name}" for o, c in RUNS])
def test_bytes(operation, case, backend):
    if backend == "cuda" and nvcc.absent():
        pytest.skip(nvcc.absent())
    inputs = harness.make_inputs(operation, case, torch.bfloat16)
    with running(backend) as device:
        found = dict(launched(device, operation, case, torch.bfloat16, backend))
    for direction, launches in found.items():
        label = f"{operation} {direction}, {backend}"
        if backend == "triton":
            _touch_little(label, sum(map(_touched, launches)), operation, direction, inputs)
        _move_wide(label, launches, budgets.wide_share(backend, operation, direction, case.name))


def _touch_little(label, touched, operation, direction, inputs):
    least = costs.cost(operation, direction, inputs, save=True).bytes
    allowed = budgets.bytes_allowed(operation, direction)
    assert touched <= allowed * least, (
        f"{label}: {touched:,.0f} bytes, {touched / least:.3f} of the formula's {least:,.0f}"
    )
    # a count, the same in every run: half of the least is no rounding but a missing tensor
    assert touched > 0.5 * least, f"{label}: the count or the formula is wrong"


def _move_wide(label, launches, share):
    moved = Counter()
    for launch in launches:
        moved.update(launch.report.moved)
    total = sum(moved.values())
    assert moved[16] >= share * total, (
        f"{label}: {moved[16] / total:.1%} of the bytes are moved 16 at a time, {share:.0%} asked: {dict(moved)}"
    )


def _touched(launch) -> int:
    report = launch.report
    return sum(report.bytes_read.values()) + sum(report.bytes_written.values())


def test_a_second_pass_is_over_budget():
    """What the budget is for: a forward that runs its kernels twice touches twice the bytes."""
    case = CASES["linear_gelu"]
    inputs = harness.make_inputs("linear_gelu", case, torch.bfloat16)
    with emulated() as device, dispatch.use_backend("triton"), torch.no_grad():
        for _ in range(2):
            harness.public("linear_gelu")(**inputs)
    found = sum(map(_touched, device.launches))
    assert found > budgets.BYTES * costs.cost("linear_gelu", "forward", inputs).bytes
