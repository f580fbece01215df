"""qkv_projection: parity of every backend, gradients, mutations, the torch.library ops, bad arguments."""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import ops
from bertfast.errors import ArgumentError

OPERATION = "qkv_projection"


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
        ({"num_heads": 2}, r"num_heads: expected a divisor of 33 \(the features\), got 2"),
        ({"num_heads": 0}, "num_heads: expected a divisor"),
        ({"wk": torch.zeros(33, 34)}, r"wk: expected shape \[33, 33\], got shape \[33, 34\]"),
        ({"bv": torch.zeros(32)}, r"bv: expected shape \[33\]"),
        (
            {"x": torch.zeros(4, 33, dtype=torch.float16)},
            "wq: expected torch.float16 as x, got torch.float32",
        ),
    ],
)
def test_bad_arguments(change, message):
    inputs = harness.make_inputs(OPERATION, harness.cases(OPERATION)[1], torch.float32)
    with pytest.raises(ArgumentError, match=message):
        ops.qkv_projection(**(inputs | change))
