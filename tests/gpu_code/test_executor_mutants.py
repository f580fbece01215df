"""Faults planted in the executor itself: each must make a proof fail. One library holds them all, behind a switch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gpu_code import nvcc
from gpu_code import test_executor_cuda as cuda
from gpu_code import test_executor_faults as faults
from gpu_code.executor import build

pytest.importorskip("triton", reason="triton is not installed")

from gpu_code import test_executor_driver as triton_faults
from gpu_code import test_executor_triton as triton

launch = importlib.import_module(
    "gpu_code.executor.launch"
)  # the name in the package is its function


class Mutant(NamedTuple):
    """`old` becomes `new` in one file of the runtime wherever PLANTED is true; then `proof` must fail."""

    file: str
    old: str
    new: str
    proof: Callable[[], None]
    needs_nvcc: bool = False


def at(proof, *arguments) -> Callable[[], None]:
    return lambda: proof(*arguments)


def product(stages=1, dense="n", dtype=torch.float16):
    return at(triton.test_product, dtype, stages, dense, "forward")


def missing(name, kinds, threads=64, needed="bar.sync"):
    return at(
        faults.test_what_a_missing_barrier_or_wait_does, name, needed, threads, kinds, "forward"
    )


def planted_in_kernel(name, kind, blocks=1, threads=1, elements=None):
    return at(
        faults.test_a_fault_is_reported_where_it_stands, name, kind, blocks, threads, elements
    )


NO_ORDER = at(faults.test_lanes_warps_and_blocks_run_in_the_order_asked_for, "reversed", 0, 0, 0)
LANDING = missing("landing", {"cp.async before its wait"}, 32, "cp.async.wait_group")

MUTANTS = {
    "mma: rows of A swapped": Mutant(
        "warp.cpp",
        "values[line + g]",
        "values[(PLANTED && Lines == 16 ? 8 - line : line) + g]",
        product(),
    ),
    "mma: halves of B swapped": Mutant(
        "warp.cpp",
        "[k0 + k]",
        "[(PLANTED && Lines == 8 ? K - kStep - k0 : k0) + k]",
        product(),
    ),
    "mma: rows and columns of C mistaken": Mutant(
        "warp.cpp",
        "8 * (k / 2)][lane % 4 * 2 + k % 2]",
        "8 * (PLANTED ? k % 2 : k / 2)][lane % 4 * 2 + (PLANTED ? k / 2 : k % 2)]",
        product(),
    ),
    "mma: tf32 with all bits": Mutant(
        "warp.cpp",
        "element & 0xffffe000u",
        "element & (PLANTED ? ~0u : 0xffffe000u)",
        product(dtype=torch.float32),
    ),
    "shfl.bfly from another lane": Mutant(
        "warp.cpp",
        "from = lane ^ int(b)",
        "from = lane ^ int(b) ^ int(PLANTED)",
        at(triton.test_softmax, 257, "forward"),
    ),
    "shfl.down with its bound one too low": Mutant(
        "warp.cpp",
        "from = lane + int(b), ok = from <= top",
        "from = lane + int(b), ok = from + PLANTED <= top",
        at(cuda.test_shuffles, "forward"),
        True,
    ),
    "ldmatrix.trans not transposed": Mutant(
        "memory.cpp", "Transposed ?", "Transposed && !PLANTED ?", product()
    ),
    "wait_group one too few": Mutant(
        "memory.cpp", "- ins.imm)", "- ins.imm - PLANTED)", product(3)
    ),
    "wait_group one too many": Mutant(
        "memory.cpp",
        "int64_t(warp.group[lane]) -",
        "int64_t(warp.group[lane]) + PLANTED -",
        triton_faults.test_a_wait_for_one_group_too_few,
    ),
    "cp.async without its source size": Mutant(
        "memory.cpp",
        "if (ins.flags & kZeroFill) bytes",
        "if ((ins.flags & kZeroFill) && !PLANTED) bytes",
        product(3),
    ),
    "cp.async that lands at once": Mutant(
        "races.cpp",
        "if (in_flight(w[i])) return kUnwaited;",
        "if (in_flight(w[i]) && !PLANTED) return kUnwaited;",
        LANDING,
    ),
    "a race: read after write": Mutant(
        "races.cpp",
        "if (!after_write(warp, lane, w[i], atomic))",
        "if (!PLANTED && !after_write(warp, lane, w[i], atomic))",
        missing("neighbours", {"race"}, 32, "bar.warp.sync"),
    ),
    "a race: write after read": Mutant(
        "races.cpp",
        "!after_reads(warp, lane, at + i, who)",
        "(!PLANTED && !after_reads(warp, lane, at + i, who))",
        missing("overwriting", {"race"}),
    ),
    "a race: write after write": Mutant(
        "races.cpp",
        "if (!after_write(warp, lane, write[at + i], atomic))",
        "if (!PLANTED && !after_write(warp, lane, write[at + i], atomic))",
        planted_in_kernel("same_place", "race", threads=64),
    ),
    "unwritten shared memory is read": Mutant(
        "races.cpp",
        "return kUnwritten;",
        "return PLANTED ? kOrdered : kUnwritten;",
        faults.test_shared_memory_starts_as_nan,
    ),
    "shared memory starts as zeros": Mutant(
        "launch.cpp",
        "std::memset(block.shared, 0xff,",
        "std::memset(block.shared, PLANTED ? 0 : 0xff,",
        faults.test_shared_memory_starts_as_nan,
    ),
    "unwritten global memory is read": Mutant(
        "memory.cpp",
        "if (!b.written[offset + i])",
        "if (!PLANTED && !b.written[offset + i])",
        faults.test_memory_that_nothing_wrote_is_not_read,
    ),
    "two blocks write one byte": Mutant(
        "memory.cpp",
        "if (strange && !harmless)",
        "if (strange && !harmless && !PLANTED)",
        planted_in_kernel("two_blocks", "two blocks", 2, 33, 65),
    ),
    "alignment": Mutant(
        "memory.cpp",
        "if (at & uint64_t(n - 1))",
        "if ((at & uint64_t(n - 1)) && !PLANTED)",
        planted_in_kernel("misaligned", "misaligned", elements=8),
    ),
    "bounds one element too wide": Mutant(
        "memory.cpp",
        "return at - b.base < b.size && n <= b.size - (at - b.base);",
        "return at - b.base < b.size + 4 * PLANTED && n <= b.size + 4 * PLANTED - (at - b.base);",
        planted_in_kernel("out_of_bounds", "out of bounds", threads=32, elements=32),
    ),
    "lanes always in one order": Mutant(
        "launch.cpp", "kLanes, l.order, random", "kLanes, PLANTED ? 0 : l.order, random", NO_ORDER
    ),
    "warps always in one order": Mutant(
        "launch.cpp", "launch.order, random", "PLANTED ? 0 : launch.order, random", NO_ORDER
    ),
    "@!p taken for @p": Mutant(
        "launch.cpp",
        "ins.negate ? ~guard",
        "ins.negate && !PLANTED ? ~guard",
        faults.test_memory_that_nothing_wrote_is_not_read,
    ),
    "a barrier that nobody waits at": Mutant(
        "launch.cpp",
        "warp.waiting = true;",
        "warp.waiting = !PLANTED;",
        at(triton.test_softmax, 257, "forward"),
    ),
    "a barrier that orders nothing": Mutant(
        "races.cpp",
        "row[v] = std::max(row[v], known[v])",
        "row[v] = std::max(row[v], PLANTED ? 0 : known[v])",
        at(triton.test_softmax, 257, "forward"),
    ),
    "atomic add overwrites": Mutant(
        "memory.cpp",
        "return T(old + b);",
        "return PLANTED ? b : T(old + b);",
        at(triton.test_layernorm_forward_and_backward, "forward"),
    ),
    "halves are rounded up at ties": Mutant(
        "half.h",
        "magnitude + 0xfff + (magnitude >> 13 & 1)",
        "magnitude + 0xfff + (PLANTED ? 1 : magnitude >> 13 & 1)",
        at(cuda.test_every_rounding_to_16_bits, torch.float16),
        True,
    ),
    "lop3 with two operands exchanged": Mutant(
        "integer.cpp",
        "(k & 4 ? a : ~a) & (k & 2 ? b : ~b)",
        "(k & (PLANTED ? 2 : 4) ? a : ~a) & (k & (PLANTED ? 4 : 2) ? b : ~b)",
        cuda.test_lop3_has_every_truth_table,
        True,
    ),
}
NAMES = list(MUTANTS)
SWITCH = "namespace ptx {\nextern int mutation;\n"
DEFINITION = 'int ptx::mutation = 0;\nextern "C" void plant(int which) { ptx::mutation = which; }\n'


@pytest.fixture(scope="module")
def mutated(tmp_path_factory) -> build.Runtime:
    """A runtime with every mutant in it; `library.plant(k)` makes the k-th one true, 0 none."""
    folder = tmp_path_factory.mktemp("runtime")
    files = {path.name: path.read_text() for path in build.SOURCES.iterdir()}
    for number, mutant in enumerate(MUTANTS.values(), 1):
        assert mutant.old in files[mutant.file], mutant.old
        new = mutant.new.replace("PLANTED", f"(ptx::mutation == {number})")
        files[mutant.file] = files[mutant.file].replace(mutant.old, new)
    for name in ("races.h", "half.h"):
        files[name] = files[name].replace("namespace ptx {\n", SWITCH, 1)
    files["launch.cpp"] += DEFINITION
    for name, text in files.items():
        Path(folder, name).write_text(text)
    return build.runtime(folder, "-O1")


@pytest.fixture
def planted(mutated, monkeypatch):
    """Makes launches use the mutated runtime."""
    monkeypatch.setattr(launch, "runtime", lambda: mutated)
    yield mutated.library.plant
    mutated.library.plant(0)


@pytest.mark.parametrize("name", NAMES)
def test_a_proof_fails(name, planted):
    mutant = MUTANTS[name]
    if mutant.needs_nvcc and nvcc.absent():
        pytest.skip(nvcc.absent())
    mutant.proof()  # holds as long as nothing is planted
    planted(NAMES.index(name) + 1)
    with pytest.raises((Exception, pytest.fail.Exception)):
        mutant.proof()
