"""Every CUDA kernel on every target, within its budget: no spills, no stack, tensor cores where a product is, shared
memory and resident blocks. Nothing is executed: what is launched at which size is asked of the shipped host code.

`make test` gates 80, and 120, which has the least shared memory and warps; `make gates` all targets.
"""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch
from bertfast.ops import encoder
from gpu_code import cublaslt, cuda_driver, nvcc
from gpu_code.backends import allowing_tf32
from gpu_code.gates import budgets, census, cubins, loops
from gpu_code.gates.cards import CARDS, resident_blocks
from harness import Case, layers

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
QUICK = (80, 120)
MULTIPROCESSORS = 108
_LONG, _SHORT = (128,) * 16, (16,)
# Reach every kernel in every dtype: both tiles of products, all head sizes, rows of every width.
SIZES = {
    "embedding": [
        Case("one word often", _LONG, 64, 2),
        *(Case("rows", _SHORT, width, 50, p=0.1) for width in (64, 768, 2048, 8192)),
    ],
    "qkv_projection": [
        Case("many", _LONG, 768, 768, heads=12),
        Case("few", _SHORT, 64, 64, heads=2),
    ],
    "attention": [Case("heads", _SHORT, outer=size, p=0.1) for size in (32, 64, 128)],
    "linear_gelu": [Case("many", _LONG, 768, 3072), Case("few", _SHORT, 64, 64)],
    "linear_layernorm": [
        *(Case("rows", _SHORT, 64, width, p=0.1) for width in (64, 768, 1024, 2048, 4096, 8192)),
        *(Case("mixed", _SHORT, 64, width, p=0.1, mixed=True) for width in (1024, 8192)),
    ],
    "gelu_layernorm": [
        *(Case("rows", _SHORT, 64, width) for width in (64, 768, 1024, 2048, 4096)),
        *(Case("mixed", _SHORT, 64, width, mixed=True) for width in (1024, 4096)),
    ],
    "masked_cross_entropy": [Case("many", (128,), 64, 1000)],
}


def pytest_generate_tests(metafunc):
    if "target" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-architectures")
        metafunc.parametrize("target", list(CARDS) if every else QUICK, scope="module")


@pytest.fixture(scope="module")
def kernels(target):
    return cubins.compiled(target)


@pytest.fixture(scope="module")
def shapes():
    with cuda_driver.emulated(execute=False, multiprocessors=MULTIPROCESSORS) as device:
        for dtype in ("bf16", "fp16", "fp32", "tf32"):
            for operation, cases in SIZES.items():
                for case in cases:
                    with allowing_tf32(dtype == "tf32"):
                        launched = census.launched(
                            device, operation, case, census.DTYPES[dtype], "cuda"
                        )
                        list(launched)
            _launch_layers(census.DTYPES[dtype])
        _launch_padded()
        with cublaslt.present(device):  # what lays weights together for its product
            few = SIZES["qkv_projection"][1]
            list(census.launched(device, "qkv_projection", few, torch.bfloat16, "cuda:cublaslt"))
    return cubins.shapes(device.launches)


def _launch_layers(dtype):
    with pytest.MonkeyPatch.context() as patch, dispatch.use_backend("cuda"):
        patch.setattr(encoder, "through_library", lambda: False)
        layers.differentiate(dtype)


def _launch_padded():
    with pytest.MonkeyPatch.context() as patch, dispatch.use_backend("cuda"):
        patch.setattr(encoder, "through_library", lambda: False)
        layers.padded()


def test_every_kernel_is_launched(kernels, shapes):
    assert set(kernels) == set(shapes)


def test_within_budget(target, kernels, shapes):
    rows = [(name, cubin, *shapes[name]) for name, cubin in kernels.items() if name in shapes]
    blocks = {
        name: resident_blocks(
            CARDS[target], -(-threads // 32), cubin.registers, cubin.shared + shared
        )
        for name, cubin, threads, shared in rows
    }
    for name, cubin, threads, shared in rows:  # `make gates` shows it
        turns = " ".join(f"{x.instructions}/{x.products}" for x in cubin.turns)
        print(
            f"sm_{target} {threads:>5}{cubin.registers:>5}{shared:>8}{blocks[name]:>4}"
            f"{turns:>16}  {name}"
        )
    assert rows
    found = [
        f"sm_{target} {name}: {fault}"
        for name, cubin, _, shared in rows
        for fault in _faults(target, name, cubin, shared, blocks[name])
    ]
    assert not found, "\n".join(found)


def _faults(target, name, cubin, shared, blocks):
    allowed = budgets.cuda_budget(name)
    if cubin.stack or cubin.spills:
        yield f"{cubin.stack} bytes of stack, {cubin.spills} of spills"
    if cubin.shared + shared > CARDS[target].shared_block:
        yield f"{cubin.shared + shared} bytes of shared memory"
    if blocks < allowed.blocks:
        yield f"{blocks} resident blocks, {allowed.blocks} asked"
    if bool(cubin.products) != allowed.products:
        yield f"{cubin.products} tensor-core instructions"
    if cubin.reads < allowed.reads:
        yield f"{cubin.reads} reads at once, {allowed.reads} asked"
    if loop := budgets.loop_budget(name):
        if len(cubin.turns) != loop.loops:
            yield f"{len(cubin.turns)} hot loops, {loop.loops} expected"
        for turn in cubin.turns:
            if turn.instructions > loop.issued * turn.products or not turn.copies:
                yield f"{turn} of a hot loop, {loop.issued} instructions a product allowed"


def test_a_spill_is_seen(target):
    fault = next(_faults(target, "add_columns", cubins.Cubin(255, 8, 16, 0, 0, [], 0), 0, 2))
    assert fault == "8 bytes of stack, 16 of spills"


_LOOP = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/              @!P0 BRA 0x50 ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R3], [R6.64], P1 ;
        /*0040*/                   NOP ;
        /*0050*/               @P1 BRA 0x80 ;
        /*0060*/                   STS [R3], R4 ;
        /*0070*/               @P2 BRA 0x60 ;
        /*0080*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0090*/               @P3 HMMA.16816.F32.BF16 R12, R4, R6, R12 ;
        /*00a0*/               @P4 BRA 0x10 ;
        /*00b0*/                   EXIT ;
"""


def test_a_turn_is_the_way_of_the_copies(target):
    turn = loops.Turn(instructions=7, products=1, copies=1)
    assert loops.turns(_LOOP) == [turn]
    cubin = cubins.Cubin(64, 0, 0, 0, 2, [turn], 0)
    faults = list(_faults(target, "forward_tilesI6__halfNS1_4TileILi64", cubin, 0, 2))
    assert faults == [f"{turn} of a hot loop, 4.5 instructions a product allowed"]
    assert not loops.turns(_LOOP.replace("BRA 0x10", "BRA 0xb0"))


def test_reads_that_follow_each_other(target):
    read = "LDG.E.128.CONSTANT R4, [R2.64]"
    sass = _LOOP.replace("LDGSTS.E.BYPASS.128 [R3], [R6.64], P1", f"@P0 {read}").replace(
        "NOP", read
    )
    assert loops.reads(sass) == 2
    assert loops.reads(_LOOP) == 0
    cubin = cubins.Cubin(64, 0, 0, 0, 0, [], 2)
    faults = list(_faults(target, "embedding_fwd_kernelI6__halfLi1E", cubin, 0, 2))
    assert faults == ["2 reads at once, 9 asked"]
