"""Every shipped configuration, compiled for every shipped architecture, within its budget; nothing is executed here.

`make test` gates 80 in bf16, fp32 and tf32; in bf16 90, whose products are other instructions, and 120, which has the
least shared memory. `make gates` (--all-architectures) gates all in every dtype, and compiles all operations for AMD's
gfx942.
"""

from __future__ import annotations

import pytest

from gpu_code.gates import census, cubins, loops, report
from gpu_code.gates.budgets import TURNS
from gpu_code.gates.cards import CARDS, Card, resident_blocks

QUICK = {80: ("bf16", "fp32", "tf32"), 90: ("bf16",), 120: ("bf16",)}
EVERY = ("bf16", "fp16", "fp32", "tf32")
DTYPES_OF_KEYS = {
    "ieee": "fp32",
    "fp32": "fp32",
    "tf32": "tf32",
}  # by how a key begins; others: 16 bits


def pytest_generate_tests(metafunc):
    if "arch" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-architectures")
        metafunc.parametrize("arch", list(CARDS) if every else QUICK, scope="module")


@pytest.fixture(scope="module")
def dtypes(arch, request):
    return EVERY if request.config.getoption("--all-architectures") else QUICK[arch]


@pytest.fixture(scope="module")
def taken(arch, dtypes):
    return census.take(arch, dtypes=dtypes)


@pytest.fixture(scope="module")
def rows(arch, taken):
    return [report.measure(arch, shipped) for shipped in taken[0]]


def test_every_configuration_is_taken(arch, dtypes, taken):
    keys = {
        (table, key)
        for table, key in census.keys(arch)
        if DTYPES_OF_KEYS.get(key.partition("-")[0], "bf16") in dtypes
    }
    assert keys
    assert not keys - taken[1], "table entries that no size of the census reaches"


def test_within_budget(rows):
    print("", report.HEADER, *rows, sep="\n")  # `make gates` shows it
    found = [fault for row in rows for fault in report.faults(row)]
    assert not found, "\n".join(found)


def test_turns_of_attention(arch, taken, tmp_path):
    cubin, asked = tmp_path / "attention.cubin", {c: n for (a, c), n in TURNS.items() if a == arch}
    found = {}
    for shipped in taken[0]:
        if (shipped.direction, shipped.dtype) == ("forward", "bf16") and shipped.case in asked:
            cubin.write_bytes(shipped.launch.asm["cubin"])
            (sass,) = cubins.sass_of(cubin).values()
            found[shipped.case] = [turn.instructions for turn in loops.turns(sass)]
    print(f"sm_{arch}", found)
    for case, most in asked.items():
        assert len(found[case]) == 1, "loops over whole tiles"
        assert found[case][0] <= most, case


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "blocks"),
    [(4, 32, 0, 16), (4, 255, 0, 2), (8, 128, 48 * 1024, 2), (4, 64, 164 * 1024, 0), (4, 0, 0, 16)],
)
def test_resident_blocks(warps, registers, shared, blocks):
    assert resident_blocks(CARDS[80], warps, registers, shared) == blocks


def test_limits_differ():
    assert CARDS[86] == Card(48, 16, 100 * 1024, 99 * 1024)


def test_amd_compiles(request):
    every = request.config.getoption("--all-architectures")
    operations = census.OPERATIONS if every else ("linear_gelu",)
    shipped, _ = census.take("gfx942", operations, dtypes=("bf16",))
    assert shipped
    assert all("amdgcn" in record.launch.asm for record in shipped)
