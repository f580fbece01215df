"""linear_layernorm: parity of every backend, gradients, mutations, the torch.library ops, bad
arguments.
"""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import ops
from bertfast.errors import ArgumentError

OPERATION = "linear_layernorm"


def test_forward(check_forward, case, dtype, backend):
    check_forward(OPERATION, case, dtype, backend)


def test_backward(check_backward, case, dtype, pair):
    check_backward(OPERATION, case, dtype, pair)


def test_mutation_is_rejected(check_mutation, mutation):
    check_mutation(OPERATION, mutation)


def test_op(check_op, direction):
    check_op(OPERATION, direction)


DROPS = {
    "p": 0.1,
    "seed": torch.tensor([1]),
    "cu_seqlens": torch.tensor([0, 17, 17, 22], dtype=torch.int32),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"residual": torch.zeros(21, 33)},
            r"residual: expected shape \[22, 33\], got shape \[21, 33\]",
        ),
        (
            {"residual": torch.zeros(22, 33, dtype=torch.float16)},
            "residual: expected torch.float32 as x",
        ),
        (
            {"residual": torch.zeros(22, 33, dtype=torch.float64)},
            "residual: expected torch.float32 as x, got torch.float64",
        ),
        ({"weight": torch.zeros(34, 70)}, r"weight: expected shape \[33, 70\]"),
        ({"bias": torch.zeros(33, 1)}, r"bias: expected shape \[33\], got shape \[33, 1\]"),
        ({"ln_weight": torch.zeros(32)}, r"ln_weight: expected shape \[33\]"),
        ({"ln_bias": torch.zeros(33, device="meta")}, "ln_bias: expected device cpu"),
        ({"p": 1.5}, r"p: expected a probability in \[0, 1\], got 1.5"),
        ({"p": 0.1}, r"seed: expected torch.int64 \[1\] on cpu where p > 0, got None"),
        ({"p": 0.1, "seed": torch.tensor([3])}, "cu_seqlens: expected the starts of the sequences"),
        (
            {"p": 0.1, "seed": torch.tensor([3]), "cu_seqlens": torch.tensor([0, 22])},
            "cu_seqlens: expected torch.int32",
        ),
        *(({**DROPS, "example_ids": ids}, f"example_ids: {m}") for ids, m in harness.WRONG_IDS),
    ],
)
def test_bad_arguments(change, message):
    inputs = harness.make_inputs(OPERATION, harness.cases(OPERATION)[1], torch.float32)
    with pytest.raises(ArgumentError, match=message):
        ops.linear_layernorm(**(inputs | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"residual": torch.zeros(82, 33, dtype=torch.float16)},
            "residual: expected torch.bfloat16 as x, got torch.float16",
        ),
        (
            {"residual": torch.zeros(82, 33, dtype=torch.bfloat16)},
            "ln_weight: expected torch.bfloat16 as x, got torch.float32",
        ),
        (
            {"ln_bias": torch.zeros(33, dtype=torch.bfloat16)},
            "ln_bias: expected torch.float32 as residual, got torch.bfloat16",
        ),
        ({"bias": torch.zeros(33)}, "bias: expected torch.bfloat16 as x, got torch.float32"),
        ({"residual": torch.zeros(82, 33, device="meta")}, "residual: expected device cpu as x"),
        ({"residual": torch.zeros(81, 33)}, r"residual: expected shape \[82, 33\]"),
    ],
)
def test_bad_arguments_of_mixed_dtypes(change, message):
    case = next(case for case in harness.cases(OPERATION) if case.name == "mixed")
    inputs = harness.make_inputs(OPERATION, case, torch.bfloat16)
    with pytest.raises(ArgumentError, match=message):
        ops.linear_layernorm(**(inputs | change))
