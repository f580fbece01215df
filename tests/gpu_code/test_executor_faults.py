"""Faults planted in kernels: each is reported by its kind, with the line of PTX and of the source where it stands."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from gpu_code import executor, mutate, nvcc
from gpu_code.memory import Memory

NVCC = pytest.mark.skipif(bool(nvcc.absent()), reason=nvcc.absent() or "nvcc is present")
KERNELS = Path(__file__).with_name("kernels")
UNORDERED = {"race", "unwritten read", "cp.async before its wait"}
BY_HAND = (KERNELS / "faults.ptx").read_text()


@functools.cache
def by_hand():
    return executor.load(BY_HAND, name="faults.ptx")


def line_of(text: str, marker: str, after: str = "") -> int:
    """The number, from 1, of the first line that holds the marker after some other text."""
    start = text.index(marker, text.index(after))
    return text.count("\n", 0, start) + 1


def fault_of(kernel, grid: int, threads: int, *arguments, **options) -> executor.Fault:
    with pytest.raises(executor.Fault) as raised:
        Memory().launch(kernel, (grid, 1, 1), (threads, 1, 1), *arguments, **options)
    return raised.value


@pytest.mark.parametrize(
    ("name", "kind", "blocks", "threads", "elements"),
    [
        ("out_of_bounds", "out of bounds", 1, 32, 32),
        ("before_the_start", "out of bounds", 1, 1, 32),
        ("misaligned", "misaligned", 1, 1, 8),
        ("misaligned_shared", "misaligned", 1, 1, None),
        ("beyond_shared", "out of bounds", 1, 32, None),
        ("two_blocks", "two blocks", 2, 33, 65),
        ("same_place", "race", 1, 64, None),
    ],
)
def test_a_fault_is_reported_where_it_stands(name, kind, blocks, threads, elements):
    arguments = [] if elements is None else [torch.zeros(elements, dtype=torch.int32)]
    fault = fault_of(by_hand()[name], blocks, threads, *arguments)
    assert fault.kind == kind
    assert fault.ptx_line == line_of(BY_HAND, "// fault", f".entry {name}(")
    assert str(fault.ptx_line) in str(fault)


def test_what_a_report_names():
    x = torch.zeros(32, dtype=torch.int32)
    fault = fault_of(by_hand()["out_of_bounds"], 1, 32, x)
    assert fault.source == "faults.source:12"
    assert (fault.buffer, fault.offset) == ("argument 0", 128)
    assert (fault.block, fault.thread) == ((0, 0, 0), (31, 0, 0))
    for part in ("out of bounds", "faults.source:12", "argument 0", "128", "ld.global.u32"):
        assert part in str(fault)


def test_memory_that_nothing_wrote_is_not_read():
    with Memory() as memory:
        x = torch.empty(32, dtype=torch.int32)
        with pytest.raises(executor.Fault) as raised:
            memory.launch(by_hand()["unwritten_read"], (1, 1, 1), (32, 1, 1), x)
    assert raised.value.kind == "unwritten read"
    assert raised.value.thread == (5, 0, 0)
    Memory().launch(by_hand()["unwritten_read"], (1, 1, 1), (32, 1, 1), torch.zeros_like(x))


@pytest.mark.parametrize("order", ["forward", "reversed", "shuffled"])
@pytest.mark.parametrize(
    ("name", "needed", "threads", "kinds"),
    [
        ("race", "bar.sync", 64, {"race", "unwritten read"}),
        ("overwriting", "bar.sync", 64, {"race"}),
        ("neighbours", "bar.warp.sync", 32, {"race"}),
        ("landing", "cp.async.wait_group", 32, {"cp.async before its wait"}),
    ],
)
def test_what_a_missing_barrier_or_wait_does(name, needed, threads, kinds, order):
    x = torch.arange(threads, dtype=torch.int32)
    last = mutate.sites(BY_HAND, name)[-1]
    assert needed in last.text
    Memory().launch(by_hand()[name], (1, 1, 1), (threads, 1, 1), x, order=order)
    expected = torch.arange(threads)
    if name == "overwriting":
        expected[:32] += 32
    assert x.tolist() == expected.tolist()
    broken = executor.load(mutate.without(BY_HAND, [last]), name=name)[name]
    fault = fault_of(broken, 1, threads, x, order=order)
    assert fault.kind in kinds
    assert "// fault without" in BY_HAND.splitlines()[fault.ptx_line - 1]


@pytest.mark.parametrize(
    ("order", "lanes", "warps", "blocks"), [("forward", 31, 63, 1063), ("reversed", 0, 0, 0)]
)
def test_lanes_warps_and_blocks_run_in_the_order_asked_for(order, lanes, warps, blocks):
    def last_writer(grid, threads, **options):
        x = torch.zeros(1, dtype=torch.int32)
        kernel = by_hand()["one_place"]
        Memory().launch(kernel, (grid, 1, 1), (threads, 1, 1), x, check=False, **options)
        return x.item()

    found = [last_writer(*shape, order=order) for shape in ((1, 32), (1, 64), (2, 64))]
    assert found == [lanes, warps, blocks]
    assert len({last_writer(2, 64, order="shuffled", seed=seed) for seed in range(8)}) > 2


def test_shared_memory_starts_as_nan():
    x = torch.zeros(1, dtype=torch.int32)
    fault = fault_of(by_hand()["uninitialised_shared"], 1, 1, x)
    assert fault.kind == "unwritten read"
    Memory().launch(by_hand()["uninitialised_shared"], (1, 1, 1), (1, 1, 1), x, check=False)
    assert x.view(torch.float32).isnan()


@pytest.mark.parametrize("name", ["deadlock", "divergent_barrier"])
def test_warps_that_wait_for_ever(name):
    assert fault_of(by_hand()[name], 1, 64).kind == "deadlock"


def test_a_loop_without_end_is_stopped():
    assert fault_of(by_hand()["endless"], 1, 32, limit=10_000).kind == "limit"


@pytest.mark.parametrize(
    "unknown", ["add.s33 %r1, %r1, 1;", "addition.s32 %r1, %r1, 1;", "add.s32 %r1, %r1;"]
)
def test_unknown_instructions_do_not_load(unknown):
    code = BY_HAND.replace("add.s32 %r1, %r1, 1;", unknown)
    with pytest.raises(executor.Fault) as raised:
        executor.load(code, name="unknown")
    assert raised.value.kind == "unknown instruction"
    assert raised.value.ptx_line == line_of(code, unknown)


def entries(code: str) -> list[str]:
    """Texts with one kernel each."""
    start = code.index(".visible .entry")
    kernels = [part[: part.index("\n}") + 3] for part in code[start:].split(".visible ")[1:]]
    return [code[:start] + kernel for kernel in kernels]


@pytest.mark.parametrize(
    "stem", ["by hand", pytest.param("warps", marks=NVCC), pytest.param("products", marks=NVCC)]
)
def test_no_instruction_takes_a_modifier_that_it_does_not_have(stem):
    seen = set()
    for code in entries(BY_HAND if stem == "by hand" else nvcc.ptx(KERNELS / f"{stem}.cu")):
        start = code.index(".entry")
        for found in re.finditer(
            r"^\t(?:@!?%\w+ +)?([a-z]\w*(?:\.[\w:]+)*)[ \t][^;]*;", code[start:], re.M
        ):
            end = start + found.end(1)
            if found[1] not in seen:
                seen.add(found[1])
                with pytest.raises(executor.Fault, match="unknown instruction"):
                    executor.load(code[:end] + ".bogus" + code[end:], name=found[1])
    assert len(seen) > 10


@NVCC
@pytest.mark.parametrize(("stem", "name"), [("products", "pipelined_f16"), ("memory", "transpose")])
def test_every_barrier_and_wait_of_a_cuda_kernel_is_needed(stem, name):
    def run(text):
        kernel = executor.load(text, name=name)[name]
        if name == "transpose":
            x = torch.randn(32, 32)
            Memory().launch(kernel, (1, 1, 1), (32, 8, 1), x, torch.zeros(32, 32), 32, 32)
        else:
            a, b = torch.randn(64, 136).half(), torch.randn(136, 64).half()
            Memory().launch(kernel, (1, 1, 1), (128, 1, 1), a, b, torch.zeros(64, 64), 136)

    found = mutate.survey(nvcc.ptx(KERNELS / f"{stem}.cu"), run, name)
    assert found.reported
    assert not found.redundant
    assert {fault.kind for fault in found.reported.values()} <= UNORDERED
    assert all(f"{stem}.cu:" in fault.source for fault in found.reported.values())
