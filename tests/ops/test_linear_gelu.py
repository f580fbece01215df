"""linear_gelu: parity of every backend, gradients, mutations, the torch.library ops, bad arguments."""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch, ops
from bertfast.errors import ArgumentError

OPERATION = "linear_gelu"


def test_forward(check_forward, case, dtype, backend):
    check_forward(OPERATION, case, dtype, backend)


def test_backward(check_backward, case, dtype, pair):
    check_backward(OPERATION, case, dtype, pair)


def test_mutation_is_rejected(check_mutation, mutation):
    check_mutation(OPERATION, mutation)


def test_op(check_op, direction):
    check_op(OPERATION, direction)


def _inputs():
    return harness.make_inputs(OPERATION, harness.cases(OPERATION)[1], torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 33)}, r"x: expected 2 dimensions, got shape \[2, 3, 33\]"),
        ({"x": torch.zeros(2, 32)}, r"weight: expected shape \[70, 32\], got shape \[70, 33\]"),
        ({"x": torch.zeros(2, 33, dtype=torch.int64)}, "x: expected float32, bfloat16, .*int64"),
        ({"bias": torch.zeros(69)}, r"weight: expected shape \[69, 33\]"),
        (
            {"bias": torch.zeros(70, dtype=torch.bfloat16)},
            "bias: expected torch.float32 as x, got torch.bfloat16",
        ),
        (
            {"weight": torch.zeros(70, 33, device="meta")},
            "weight: expected device cpu as x, got device meta",
        ),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_bad_arguments(change, message, grad):
    inputs = _inputs() | change
    inputs["bias"] = inputs["bias"].clone().requires_grad_(grad)
    with pytest.raises(ArgumentError, match=message):
        ops.linear_gelu(**inputs)


def test_tail_is_monotone_to_minus_zero():
    """gelu of the backend cpu goes to -0 without a step back, a change of sign or a nan (torch's own
    steps back).
    """
    x = torch.cat([torch.linspace(-20, -5, 301), torch.tensor([-1e4, -3e38, 3e38])])[:, None]
    reason = harness.refuses(OPERATION, "cpu", x, x[:1], x[0], False)
    if reason is not None:
        pytest.skip(reason)
    with dispatch.use_backend("cpu"), torch.no_grad():
        y = ops.linear_gelu(x, torch.ones(1, 1), torch.zeros(1))[:, 0]
    assert (y[:-1] <= 0).all()
    assert (y[:301].diff() <= 0).all()
    assert y[-3:-1].tolist() == [0, 0]
    assert y[-3:-1].signbit().all()
    assert y[-1] == x[-1, 0]
