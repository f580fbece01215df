"""Blocks, warps and lanes in other orders: equal bits from every GPU backend, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import harness
from bertfast import dispatch
from gpu_code import nvcc
from gpu_code.backends import running
from harness import Case

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CASES = {
    "embedding": Case("orders", (140, 0, 25), 64, 20, p=0.1),
    "qkv_projection": Case("orders", (140, 25), 96, 64, heads=2),
    "attention": Case("orders", (140, 0, 25), outer=64, heads=2, p=0.1),
    "linear_gelu": Case("orders", (140, 25), 96, 72),
    "linear_layernorm": Case("orders", (140, 0, 25), 96, 72, p=0.1),
    "gelu_layernorm": Case("orders", (140, 25), 96, 72),
    "masked_cross_entropy": Case("orders", (140, 25), 96, 700),
}
_MIXED = ("linear_layernorm", "gelu_layernorm")
RUNS = [
    *((operation, dtype, CASES[operation]) for operation in harness.OPERATIONS for dtype in DTYPES),
    *((name, "bf16", replace(CASES[name], name="mixed", mixed=True)) for name in _MIXED),
]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize(
    ("operation", "dtype", "case"), RUNS, ids=[f"{o}-{d}-{c.name}" for o, d, c in RUNS]
)
def test_equal_bits_in_every_order(operation, dtype, case, backend):
    if backend == "cuda" and nvcc.absent():
        pytest.skip(nvcc.absent())
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    first, *others = (
        _results(backend, operation, case, DTYPES[dtype], order=order, seed=seed, multiprocessors=3)
        for order, seed in (
            ("forward", 0),
            ("reversed", 0),
            *(("shuffled", harness.seeds.seed(n)) for n in (1, 2)),
        )
    )
    for other in others:
        assert not harness.other_bits(first, other)


def _results(
    backend: str, operation: str, case: Case, dtype: torch.dtype, **options
) -> dict[str, Tensor]:
    with running(backend, **options), dispatch.use_backend(backend):
        return harness.differentiate(operation, case, dtype, harness.public(operation))
