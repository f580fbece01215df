"""embedding: parity of every backend, gradients, mutations, the torch.library ops, bad arguments."""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import ops
from bertfast.errors import ArgumentError

OPERATION = "embedding"


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


def _ids(*values):
    return torch.tensor([*values, *[0] * (22 - len(values))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": _ids(1, 50)}, r"input_ids: expected values in \[0, 50\), got 50 at index 1"),
        (
            {"input_ids": _ids(1, 2, -1)},
            r"input_ids: expected values in \[0, 50\), got -1 at index 2",
        ),
        ({"input_ids": _ids().int()}, "input_ids: expected int64, got torch.int32"),
        (
            {"input_ids": _ids().view(2, 11)},
            r"input_ids: expected shape \[22\], got shape \[2, 11\]",
        ),
        (
            {"position_ids": _ids(600)},
            r"position_ids: expected values in \[0, 600\), got 600 at index 0",
        ),
        ({"position_ids": _ids()[1:]}, r"position_ids: expected shape \[22\], got shape \[21\]"),
        (
            {"token_type_ids": _ids(0, 2)},
            r"token_type_ids: expected values in \[0, 2\), got 2 at index 1",
        ),
        (
            {"inputs_embeds": torch.zeros(22, 33)},
            "input_ids: expected either input_ids or inputs_embeds, got both",
        ),
        ({"input_ids": None, "word": None}, "got neither"),
        ({"word": None}, "word: expected a table"),
        ({"word": torch.zeros(50, 32)}, r"word: expected shape \[50, 33\]"),
        (
            {"segment": torch.zeros(2, 33, dtype=torch.float16)},
            "segment: expected torch.float32 as position",
        ),
        ({"p": 0.1, "seed": torch.tensor([1])}, "cu_seqlens: expected the starts"),
        *(({**DROPS, "example_ids": ids}, f"example_ids: {m}") for ids, m in harness.WRONG_IDS),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_bad_arguments(change, message, grad):
    inputs = harness.make_inputs(OPERATION, harness.cases(OPERATION)[1], torch.float32) | change
    inputs["ln_bias"] = inputs["ln_bias"].clone().requires_grad_(grad)
    with pytest.raises(ArgumentError, match=message):
        ops.embedding(**inputs)


def test_padding_row_gets_no_gradient():
    inputs = harness.make_inputs(OPERATION, harness.cases(OPERATION)[1], torch.float32)
    word = inputs["word"].clone().requires_grad_()
    for padding_idx, rows in ((0, 1), (-1, 0)):
        (dword,) = torch.autograd.grad(
            ops.embedding(**inputs | {"word": word, "padding_idx": padding_idx}).sum(), word
        )
        assert (dword[0] == 0).all() == bool(rows)
        assert dword[1:].any()
