"""masked_cross_entropy: parity of every backend, gradients, mutations, the torch.library ops, bad
arguments.
"""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch, ops
from bertfast.errors import ArgumentError

OPERATION = "masked_cross_entropy"


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
        (
            {"labels": torch.full((22,), 101)},
            r"labels: expected values in \[0, 101\) or -100, got 101 at index 0",
        ),
        ({"labels": torch.tensor([-100] * 21 + [-1])}, "or -100, got -1 at index 21"),
        ({"labels": torch.zeros(22)}, "labels: expected int64, got torch.float32"),
        (
            {"labels": torch.zeros(21, dtype=torch.int64)},
            r"labels: expected shape \[22\], got shape \[21\]",
        ),
        ({"weight": torch.zeros(101, 34)}, r"weight: expected shape \[101, 33\]"),
        ({"bias": torch.zeros(100)}, r"bias: expected shape \[101\]"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ArgumentError, match=message):
        ops.masked_cross_entropy(**(_inputs() | change))


@pytest.mark.parametrize("num_items", [None, 3])
def test_no_labelled_row(backend, num_items):
    """As torch: the mean of nothing is nan, its gradient 0; a sum over a given count is 0."""
    inputs = _inputs() | {"labels": torch.full((22,), -100), "num_items": num_items}
    reason = harness.refuses(OPERATION, backend, *inputs.values())
    if reason is not None:
        pytest.skip(reason)
    x = inputs["x"].detach().requires_grad_()
    with dispatch.use_backend(backend):
        loss = ops.masked_cross_entropy(**inputs | {"x": x})
    assert loss.isnan() if num_items is None else loss == 0
    (dx,) = torch.autograd.grad(loss, x)
    assert (dx == 0).all()


def test_rows_without_a_label_are_not_computed(backend):
    """Not even a nan in one of them reaches the loss or a gradient."""
    inputs = _inputs()
    reason = harness.refuses(OPERATION, backend, *inputs.values())
    if reason is not None:
        pytest.skip(reason)
    x = inputs["x"].clone()
    x[inputs["labels"] == -100] = torch.nan
    weight = inputs["weight"].detach().requires_grad_()
    with dispatch.use_backend(backend):
        loss = ops.masked_cross_entropy(**inputs | {"x": x, "weight": weight})
        expected = ops.masked_cross_entropy(**inputs)
    assert torch.equal(loss.detach(), expected)
    assert torch.autograd.grad(loss, weight)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_makes_no_gradient_smaller(dtype):
    """All labels share one slope, 1 / n nearly: it must not be rounded, or gradients shrink or grow by it."""
    generator = harness.seeds.generator(7)
    x, weight = torch.randn(64, 48, generator=generator), torch.randn(500, 48, generator=generator)
    labels = torch.randint(0, 500, (64,), generator=generator)
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight * 0.05)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    found = []
    for backend, (rows, table) in (("cpu", leaves), ("reference", exact)):
        with dispatch.use_backend(backend):
            loss = ops.masked_cross_entropy(rows, table, None, labels, num_items=550)
            found.append(torch.autograd.grad(loss, (rows, table)))
    for got, right in zip(*found, strict=True):
        along = (got.double() * right).sum() / right.square().sum()
        assert abs(along.item() - 1) < 3e-4
