"""What the predicted table of a GPU is made from is what the shipped host code launches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package benchmarks

import harness
from benchmarks import gpu, predictions
from gpu_code import counted, nvcc
from gpu_code.gates import budgets
from harness import Case


@pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
@pytest.mark.parametrize("load", ["1x128", "8x128"])
def test_counted(load):
    kept = predictions.counted()[load]
    assert set(kept) == set(predictions.PARTS)
    changed = [name for name in predictions.PARTS if counted.counted(name, load) != kept[name]]
    assert not changed, (
        f"{', '.join(changed)}: not what {predictions.COUNTED.name} has; write it again: "
        "PYTHONPATH=.:tests python -m gpu_code.counted"
    )


@pytest.mark.parametrize("load", gpu.LOADS)
def test_launches_of_the_model_are_within_the_gates(load):
    forward, both = (
        sum(part.launches for part in predictions.model(load, backward))
        for backward in (False, True)
    )
    assert forward == 1 + predictions.LAYERS * budgets.LAUNCHES_FORWARD
    assert forward < both <= 1 + 4 + predictions.LAYERS * budgets.LAUNCHES_BOTH["cuda"]


def test_a_prediction_is_what_binds():
    roof = gpu.Roof(flops=4096.0, bytes=10.0, issued=2.0)
    work = predictions.Work(predictions.Cost(4096.0 * 3, 20.0), instructions=0.0, launches=1)
    assert predictions.seconds(work, roof) == 3
    assert predictions.seconds(work._replace(instructions=14.0), roof) == 7
    assert predictions.seconds(work._replace(cost=predictions.Cost(0, 80.0)), roof) == 8


def test_a_kernel_that_is_apart_moves_bytes():
    case = Case("", (3, 4), 8, 16, heads=2)
    inputs = harness.make_inputs("linear_gelu", case, torch.bfloat16)
    for launches, more in (["backward_tiles"], 0), (["multiply_by_slope", "backward_tiles"], 448):
        assert counted.more_bytes("linear_gelu", "backward", inputs, launches) == more
    inputs = harness.make_inputs("attention", case, torch.bfloat16)
    for launches, more in (["attention_bwd_kernel"], 0), (["attention_bwd_kernel"] * 2, 896):
        assert counted.more_bytes("attention", "backward", inputs, launches) == more
    assert counted.more_bytes("attention", "forward", inputs, ["a", "b"]) == 0
