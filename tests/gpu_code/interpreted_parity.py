"""The Triton backends in Triton's interpreter. Run by test_interpreted.py in its own process: TRITON_INTERPRET=1 must
be set before a kernel is defined, and rules compiling out.

    TRITON_INTERPRET=1 python -m pytest tests/gpu_code/interpreted_parity.py
"""

from __future__ import annotations

import contextlib
import random
from itertools import product

import pytest
import torch
from triton.runtime import interpreter

import harness
from bertfast import dispatch
from bertfast.ops import _triton
from gpu_code.triton_driver import Memory

ORDERS = ("forward", "reversed", "shuffled")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# The others differ in sizes and dtype, whose kernels gpu_code executes as they are compiled.
_FEW = ("tiny", "odd", "dropout", "embeds", "mixed", "no-bias", "num-items")


def _runs():
    for name in harness.OPERATIONS:
        for case, dtype in product(harness.cases(name), DTYPES):
            few = case.name in _FEW and dtype == ("fp16" if case.mixed else "fp32")
            marks = [] if few else pytest.mark.repeated
            yield pytest.param(name, case, dtype, id=f"{name}-{case}-{dtype}", marks=marks)


@contextlib.contextmanager
def programs_in(order: str):
    """Programs of each launch in that order, whatever the grid says."""
    builder, plain = interpreter.interpreter_builder, interpreter.interpreter_builder.set_grid_idx
    permutations: dict[tuple, list] = {}

    def set_grid_idx(x, y, z):
        grid = tuple(builder.grid_dim)
        if grid not in permutations:
            cells = list(product(*map(range, grid)))
            if order == "shuffled":
                random.Random(harness.seeds.seed()).shuffle(cells)
            permutations[grid] = cells[::-1] if order == "reversed" else cells
        plain(*permutations[grid][(x * grid[1] + y) * grid[2] + z])

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        del builder.set_grid_idx


@pytest.mark.parametrize(("operation", "case", "dtype"), _runs())
def test_parity_and_bits(operation, case, dtype):
    """Forward and gradients by the accuracy check; equal bits in every order of the programs."""
    dtype = DTYPES[dtype]
    assert _triton.interpreted()
    for direction in ("forward", "backward"):
        reason = harness.refusal(operation, direction, case, dtype, "triton")
        if reason is not None:
            pytest.skip(reason)
    found = []
    with dispatch.use_backend("triton"):
        for order in ORDERS:
            with programs_in(order), Memory():
                found.append(
                    harness.differentiate(operation, case, dtype, harness.public(operation))
                )
    with Memory():
        harness.check_forward(operation, case, dtype, "triton")
    harness.compare_gradients(operation, case, dtype, found[0], f"{operation} {case}")
    for order, other in zip(ORDERS[1:], found[1:], strict=True):
        assert not harness.other_bits(found[0], other), order
