"""Every entry of every Triton table for sm_80 is executed, forward and backward, by the accuracy check, all checks on.
fp16 takes bf16's entries: its runs are left to `make test-all`.

Which entry a call takes follows from its sizes and the number of multiprocessors, so both vary; that no entry is missed
is asserted. Loops over many tiles run in one and in three programs.
"""

from __future__ import annotations

import importlib

import pytest

pytest.importorskip("triton", reason="triton is not installed")

import harness
from bertfast.ops import _triton
from gpu_code.backends import allowing_tf32
from gpu_code.gates import census
from gpu_code.triton_driver import emulated
from harness import Case

_FEW, _SOME, _MANY = 108, 16, 1  # multiprocessors: what they make of these sizes' tiles
# (multiprocessors, backend, case)
RUNS: dict[str, list[tuple[int, str, Case]]] = {
    "embedding": [
        *((m, "triton", Case("narrow", (70, 0, 41), 72, 9, p=0.1)) for m in (1, 3)),
        (3, "triton", Case("wide", (20, 5), 1100, 9)),
    ],
    "qkv_projection": [
        (m, "triton", Case("tiles", (300,), 200, 200, heads=2)) for m in (_FEW, _SOME, _MANY)
    ],
    "attention": [
        (4, "triton", Case("heads", (length, 9), outer=2 * size, heads=2, p=0.1))
        for size in (32, 64, 128)
        for length in (61, 120, 200)
    ],
    "linear_gelu": [
        *((m, "triton", Case("tiles", (300,), 200, 200)) for m in (_FEW, _SOME, _MANY)),
        (4, "triton:torch", Case("gelu", (70,), 96, 72)),
    ],
    "linear_layernorm": [
        *((m, "triton", Case("narrow", (70, 0, 41), 96, 72, p=0.1)) for m in (1, 3)),
        (3, "triton", Case("wide", (20, 5), 96, 1100, p=0.1)),
    ],
    "masked_cross_entropy": [
        (4, "triton", Case("few", (200,), 96, 700)),
        (4, "triton", Case("many", (1100,), 96, 700)),
    ],
}
TABLES = {  # what the runs of an operation must reach: the tables whose names begin so
    "embedding": ("embedding_",),
    "qkv_projection": ("linear", "linear_backward"),
    "attention": ("attention_",),
    "linear_gelu": ("linear", "linear_gelu_backward", "gelu"),
    "linear_layernorm": ("layernorm_", "column_sums"),
    "masked_cross_entropy": ("cross_entropy_",),
}


@pytest.mark.parametrize("operation", RUNS)
def test_every_entry(operation):
    with census.picks() as picked:
        for dtype in ("bf16", "fp32", "tf32"):
            _run(operation, dtype)
    asked = {(table, key) for table, key in census.keys(80) if _belongs(table, TABLES[operation])}
    assert asked
    assert not asked - picked


def test_every_table_is_some_operations():
    for operation in harness.OPERATIONS:
        importlib.import_module(f"bertfast.ops.{operation}.triton")
    names = {name for names in TABLES.values() for name in names}
    left = [table for table in _triton.TABLES if not _belongs(table, tuple(names))]
    assert not left, f"no run reaches {left}: add it to TABLES, and what reaches it to RUNS"


@pytest.mark.repeated
@pytest.mark.parametrize("operation", RUNS)
def test_every_entry_in_fp16(operation):
    _run(operation, "fp16")


def _run(operation: str, dtype: str) -> None:
    for multiprocessors, backend, case in RUNS[operation]:
        _check(operation, case, census.DTYPES[dtype], backend, dtype == "tf32", multiprocessors)


def _check(operation, case, dtype, backend, tf32, multiprocessors):
    harness.expect(operation, case, dtype, tf32)  # outside the emulation
    with allowing_tf32(tf32), emulated(multiprocessors=multiprocessors):
        harness.check_forward(operation, case, dtype, backend, tf32=tf32)
        harness.check_backward(operation, case, dtype, backend, tf32=tf32)


def _belongs(table: str, names: tuple[str, ...]) -> bool:
    return any(table == name or (name.endswith("_") and table.startswith(name)) for name in names)


def test_no_table_is_forgotten():
    names = {name for names in TABLES.values() for name in names}
    assert all(_belongs(table, tuple(names)) for table in _triton.TABLES)
