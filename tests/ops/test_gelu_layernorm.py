"""gelu_layernorm: parity of every backend, gradients, mutations, the torch.library ops, bad arguments."""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import ops
from bertfast.errors import ArgumentError

OPERATION = "gelu_layernorm"


def test_forward(check_forward, case, dtype, backend):
    check_forward(OPERATION, case, dtype, backend)


def test_backward(check_backward, case, dtype, pair):
    check_backward(OPERATION, case, dtype, pair)


def test_mutation_is_rejected(check_mutation, mutation):
    check_mutation(OPERATION, mutation)


def test_op(check_op, direction):
    check_op(OPERATION, direction)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(70)}, r"x: expected 2 dimensions, got shape \[70\]"),
        (
            {"weight": torch.zeros(33, 70, dtype=torch.float64)},
            "weight: expected torch.float32 as x",
        ),
        ({"bias": torch.zeros(())}, r"weight: expected shape \[0, 70\]"),
        ({"ln_weight": torch.zeros(1, 33)}, r"ln_weight: expected shape \[33\]"),
        ({"ln_bias": torch.zeros(34)}, r"ln_bias: expected shape \[33\]"),
        (
            {"ln_weight": torch.zeros(33, dtype=torch.float16)},
            "ln_weight: expected torch.float32 as x",
        ),
    ],
)
def test_bad_arguments(change, message):
    inputs = harness.make_inputs(OPERATION, harness.cases(OPERATION)[1], torch.float32)
    with pytest.raises(ArgumentError, match=message):
        ops.gelu_layernorm(**(inputs | change))
