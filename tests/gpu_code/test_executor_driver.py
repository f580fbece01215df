"""The emulated Triton driver: what it records, what it keeps apart, and faults in kernels that Triton compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu_code import executor, mutate

pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime import driver

from bertfast.ops import _triton
from gpu_code.kernels import proofs
from gpu_code.triton_driver import emulated

SOURCE = Path(proofs.__file__)


def line_of(text: str, after: str) -> str:
    """`file:line` of the first line of the proof kernels that holds the text after another."""
    code = SOURCE.read_text()
    start = code.index(text, code.index(after))
    return f"{SOURCE.name}:{code.count(chr(10), 0, start) + 1}"


def add(x, y, out, size=None, blocks=4):
    proofs.add_kernel[(blocks,)](x, y, out, out.numel() if size is None else size, BLOCK=256)
    return out


def test_the_former_driver_returns_and_architectures_stay_apart():
    former = driver._active
    x = torch.randn(1000)
    for arch in (80, 90, 80):
        with emulated(arch, execute=False, multiprocessors=7) as device:
            add(x, x, x)
            assert driver.active.get_active_torch_device().type == "cpu"
            properties = driver.active.utils.get_device_properties(arch)
            assert properties["multiprocessor_count"] == 7
        (launch,) = device.launches
        assert launch.metadata.target.arch == arch
        assert f".target sm_{arch}" in launch.asm["ptx"]
        assert (launch.name, launch.grid, launch.report) == ("add_kernel", (4, 1, 1), None)
        assert driver._active is former


def test_amd_is_compiled_for_and_not_executed():
    with emulated("gfx942", execute=False) as device:
        add(*torch.randn(3, 1000))
    assert "amdgcn" in device.launches[0].asm
    with pytest.raises(ValueError, match="only be compiled"), emulated("gfx942"):
        pass


def test_a_device_is_asked_once_for_what_it_is(monkeypatch):
    with emulated(80, execute=False, multiprocessors=7):
        utils, asked = driver.active.utils, []

        def properties(device):
            asked.append(device)
            return {"multiprocessor_count": 7}

        monkeypatch.setattr(utils, "get_device_properties", properties)
        for _ in range(3):
            assert (_triton.arch(), _triton.multiprocessors()) == (80, 7)
        assert len(asked) == 1
    with emulated(90, execute=False, multiprocessors=3):
        assert (_triton.arch(), _triton.multiprocessors()) == (90, 3)
        assert _triton.registers(64) == {"maxnreg": 64}
    with emulated("gfx942", execute=False):
        assert _triton.arch() == _triton.LEAST_ARCH
        assert _triton.registers(64) == {}


def test_constants_and_scalars_reach_the_kernel():
    x = torch.randn(3, 1)
    with emulated():
        out = add(x[1], x[2], torch.empty(1))  # the size 1 is compiled in
    assert torch.equal(out, x[1] + x[2])


def test_views_of_one_storage_are_one_buffer():
    both = torch.randn(500, 2)
    with emulated() as device:
        proofs.product_kernel[(1, 1)](
            *(both[:8, :1], both[:8, 1:], torch.empty(8, 8), 8, 8, 1, 2, 2, 2),
            BLOCK_M=16,
            BLOCK_N=16,
            BLOCK_K=16,
            PRECISION="ieee",
        )
    assert set(device.launches[0].report.bytes_read) == {"a_ptr+b_ptr", "out_ptr"}


def test_reading_beyond_a_tensor_names_the_line():
    x, y, out = torch.randn(3, 1001)
    with emulated(), pytest.raises(executor.Fault) as raised:
        add(x[:1000], y.clone(), out.clone(), size=1001)
    fault = raised.value
    assert (fault.kind, fault.buffer) == ("out of bounds", "x_ptr")
    assert line_of("x = tl.load", "def add_kernel") in fault.source


def test_fresh_memory_is_unwritten_until_torch_or_a_kernel_wrote_it():
    x = torch.randn(1000)
    with emulated():
        y = torch.empty(1000)
        assert y.isnan().all()
        with pytest.raises(executor.Fault) as raised:
            add(x, y, torch.empty(1000))
        assert (raised.value.kind, raised.value.buffer) == ("unwritten read", "y_ptr")
        assert line_of("y = tl.load", "def add_kernel") in raised.value.source
        y[:500].zero_()
        with pytest.raises(executor.Fault) as raised:
            add(x, y, torch.empty(1000))
        assert raised.value.offset // 4 in range(500, 1000)
        torch.add(x, 1, out=y)
        out = add(x, y, torch.empty(1000))
        assert torch.equal(add(out, x, torch.empty_like(x)), x + (x + 1) + x)
        assert (torch.empty(8, dtype=torch.int64) > 2**60).all()


def test_what_a_kernel_left_unwritten_is_counted_and_not_read():
    x = torch.randn(1000)
    with emulated() as device:
        out = add(x, x, torch.empty(1000), size=900)
        assert device.launches[0].report.unwritten["out_ptr"] == 400
        with pytest.raises(executor.Fault) as raised:
            add(x, out, torch.empty(1000))
    assert (raised.value.kind, raised.value.buffer) == ("unwritten read", "y_ptr")
    assert raised.value.offset == 3600


@pytest.mark.parametrize("order", ["forward", "reversed", "shuffled"])
def test_blocks_that_overlap_are_reported(order):
    with emulated(order=order), pytest.raises(executor.Fault) as raised:
        proofs.overlapping_kernel[(4,)](torch.zeros(4 * 64 + 1, dtype=torch.int32), BLOCK=64)
    assert raised.value.kind == "two blocks"
    assert line_of("tl.store", "def overlapping_kernel") in raised.value.source


def launch_product():
    a, b = torch.randn(64, 224).half(), torch.randn(224, 64).half()
    proofs.product_kernel[(1, 1)](
        *(a, b, torch.empty(64, 64), 64, 64, 224, 224, 64, 1),
        BLOCK_M=64,
        BLOCK_N=64,
        BLOCK_K=32,
        PRECISION="ieee",
        num_stages=3,
    )


def launch_attention():
    q, k, v = torch.randn(3, 1, 160, 32).half()
    proofs.attention_kernel[(3, 1)](
        *(q, k, v, torch.empty_like(q), 160, 0.2), HEAD=32, BLOCK_M=64, BLOCK_N=32
    )


def launch_softmax():
    x = torch.randn(2, 1000)
    proofs.softmax_kernel[(2,)](x, torch.empty_like(x), 1000, BLOCK=1024)


@pytest.mark.parametrize("launch", [launch_product, launch_attention, launch_softmax])
def test_every_barrier_and_wait_that_triton_emits(launch):
    with emulated(keep=True) as device:
        launch()
    (record,) = device.launches
    found = mutate.survey(record.asm["ptx"], record.again)
    kinds = {fault.kind for fault in found.reported.values()}
    assert kinds <= {"race", "unwritten read", "cp.async before its wait"}
    assert len(found.reported) > len(found.redundant)


def test_a_wait_for_one_group_too_few():
    def weaken(code):
        waits = [site for site in mutate.sites(code) if "wait_group \t2" in site.text]
        assert waits
        return code.replace("wait_group \t2", "wait_group \t3")

    with emulated(mutate=weaken), pytest.raises(executor.Fault) as raised:
        launch_product()
    assert raised.value.kind == "cp.async before its wait"
