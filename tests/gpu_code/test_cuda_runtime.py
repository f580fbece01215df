"""The fake CUDA runtime refuses what a GPU of sm_80 refuses: at each limit one launch passes, the next does not."""

from __future__ import annotations

import contextlib
import ctypes
import itertools

import pytest
import torch

from bertfast import dispatch, extension, ops
from gpu_code import cuda_driver, nvcc

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())

TAKEN, INVALID_VALUE, INVALID_CONFIGURATION, INVALID_HANDLE = 0, 1, 9, 400
DYNAMIC_SHARED = 8  # cudaFuncAttributeMaxDynamicSharedMemorySize
DECLARED = 1024  # bytes of shared memory that the kernel of these tests declares
DEFAULT, MOST = 48 * 1024 - DECLARED, 163 * 1024 - DECLARED
_HOSTS = itertools.count(1)


class Dim3(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class Probe:
    """A kernel of its own, registered as nvcc's generated code does it."""

    def __init__(self):
        self.runtime, self.host = cuda_driver.runtime(), ctypes.c_void_p(next(_HOSTS))
        name = f"probe{self.host.value}".encode()
        self.runtime.fake_cudart_static_shared(name, ctypes.c_size_t(DECLARED))
        self.runtime["__cudaRegisterFunction"](
            None, self.host, None, name, -1, None, None, None, None, None
        )

    def launch(self, grid=(1, 1, 1), block=(32, 1, 1), shared=0, stream=cuda_driver.STREAM) -> int:
        sizes = Dim3(*grid), Dim3(*block), None, ctypes.c_size_t(shared)
        return self.runtime.cudaLaunchKernel(self.host, *sizes, ctypes.c_void_p(stream))

    def allow(self, shared: int, attribute: int = DYNAMIC_SHARED) -> int:
        return self.runtime.cudaFuncSetAttribute(self.host, attribute, shared)


@pytest.fixture
def device():
    with cuda_driver.emulated(execute=False) as device:
        yield device
        cuda_driver.runtime().cudaGetLastError()  # the next launch starts without one


@pytest.mark.parametrize("grid", [(2**31 - 1, 1, 1), (1, 65535, 1), (1, 1, 65535)])
def test_grids(device, grid):
    probe, beyond = Probe(), tuple(size + (size > 1) for size in grid)
    assert probe.launch(grid=grid) == TAKEN
    assert probe.launch(grid=beyond) == INVALID_CONFIGURATION
    assert [launch.grid for launch in device.launches] == [grid]


@pytest.mark.parametrize(
    ("block", "beyond"),
    [
        ((1024, 1, 1), (1025, 1, 1)),
        ((1, 1024, 1), (1, 1025, 1)),
        ((1, 1, 64), (1, 1, 65)),
        ((32, 32, 1), (32, 33, 1)),
    ],
)
def test_blocks(device, block, beyond):
    assert Probe().launch(block=block) == TAKEN
    assert Probe().launch(block=beyond) == INVALID_CONFIGURATION
    assert [launch.block for launch in device.launches] == [block]


@pytest.mark.parametrize("what", ["grid", "block"])
@pytest.mark.parametrize("axis", range(3))
def test_nothing_is_not_launched(device, what, axis):
    size = tuple(int(i != axis) for i in range(3))
    assert Probe().launch(**{what: size}) == INVALID_CONFIGURATION
    assert not device.launches


def test_shared_memory_beyond_the_default_is_asked_for(device):
    probe, other = Probe(), Probe()
    assert probe.launch(shared=DEFAULT) == TAKEN
    assert probe.launch(shared=DEFAULT + 1) == INVALID_VALUE
    assert probe.allow(DEFAULT + 1) == 0
    assert probe.launch(shared=DEFAULT + 1) == TAKEN
    assert probe.launch(shared=DEFAULT + 2) == INVALID_VALUE
    assert other.launch(shared=DEFAULT + 1) == INVALID_VALUE
    with cuda_driver.emulated(execute=False, multiprocessors=63):  # another device
        assert probe.launch(shared=DEFAULT + 1) == INVALID_VALUE


def test_shared_memory_has_an_end(device):
    probe = Probe()
    assert probe.allow(MOST + 1) == INVALID_VALUE
    assert probe.allow(MOST, attribute=DYNAMIC_SHARED + 1) == INVALID_VALUE
    assert probe.allow(MOST) == 0
    assert probe.launch(shared=MOST) == TAKEN
    assert probe.launch(shared=MOST + 1) == INVALID_VALUE


def test_another_stream_than_the_callers(device):
    assert Probe().launch(stream=0) == INVALID_HANDLE
    byte = torch.ones(1, dtype=torch.uint8)
    memset = cuda_driver.runtime().cudaMemsetAsync
    address, size = ctypes.c_void_p(byte.data_ptr()), ctypes.c_size_t(1)
    assert memset(address, 0, size, None) == INVALID_HANDLE
    assert byte.item() == 1
    assert memset(address, 0, size, ctypes.c_void_p(cuda_driver.STREAM)) == 0
    assert byte.item() == 0


def test_a_refusal_reaches_the_caller(device):
    """Through the shipped host code, which says what failed and why."""
    extension.current_stream = lambda _: contextlib.nullcontext(0)  # `emulated` puts it back
    x = torch.randn(3, 8)
    with pytest.raises(RuntimeError, match="invalid resource handle"), dispatch.use_backend("cuda"):
        ops.linear_gelu(x, x, x[:, 0])


def test_what_kernels_declare_is_known():
    declared = cuda_driver.static_shared()
    assert {size for name, size in declared.items() if "add_columnsIf" in name} == {4096}
