"""The fake CUDA runtime records a stream as a GPU does: nothing runs meanwhile, arguments are kept, and what no
recording may hold ends it.
"""

from __future__ import annotations

import ctypes
import threading

import pytest

from gpu_code import cuda_driver, nvcc
from gpu_code.test_cuda_runtime import Dim3, Probe

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
STREAM = ctypes.c_void_p(cuda_driver.STREAM)
INVALID_HANDLE, UNSUPPORTED, INVALIDATED, UNMATCHED, IMPLICIT, WRONG_THREAD = (
    400, 900, 901, 903, 906, 908,
)  # fmt: skip


@pytest.fixture
def runtime():
    with cuda_driver.emulated(execute=False) as device:
        library = cuda_driver.runtime()
        library.device = device
        yield library
        library.cudaGetLastError()
    assert library.fake_cudart_graphs() == 0


def _begin(runtime, stream=STREAM) -> int:
    return runtime.cudaStreamBeginCapture(stream, 1)


def _end(runtime, stream=STREAM) -> tuple[int, ctypes.c_void_p]:
    graph = ctypes.c_void_p()
    return runtime.cudaStreamEndCapture(stream, ctypes.byref(graph)), graph


def _is_capturing(runtime, stream=STREAM) -> int:
    status = ctypes.c_int(-1)
    assert runtime.cudaStreamIsCapturing(stream, ctypes.byref(status)) == 0
    return status.value


def test_recorded_then_replayed(runtime):
    probe, ready = Probe(), ctypes.c_void_p()
    assert _begin(runtime) == 0
    assert probe.launch(grid=(3, 1, 1)) == probe.launch(block=(64, 1, 1), shared=8) == 0
    assert _is_capturing(runtime)
    error, graph = _end(runtime)
    assert (error, _is_capturing(runtime), runtime.device.launches) == (0, 0, [])
    assert runtime.cudaGraphInstantiate(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) == 0
    assert runtime.cudaGraphDestroy(graph) == 0  # what was made of it stays
    assert runtime.cudaGraphLaunch(ready, ctypes.c_void_p(1)) == INVALID_HANDLE
    for _ in range(2):
        assert runtime.cudaGraphLaunch(ready, STREAM) == 0
    found = [(x.grid, x.block, x.shared) for x in runtime.device.launches]
    assert found == [((3, 1, 1), (32, 1, 1), 0), ((1, 1, 1), (64, 1, 1), 8)] * 2
    assert runtime.cudaGraphExecDestroy(ready) == 0


def test_a_launch_that_a_gpu_refuses_is_refused_when_recorded(runtime):
    assert _begin(runtime) == 0
    assert Probe().launch(block=(1025, 1, 1)) == 9
    error, graph = _end(runtime)
    assert (error, runtime.cudaGraphDestroy(graph)) == (0, 0)


def _memset(runtime, stream):
    byte = ctypes.create_string_buffer(b"x")
    return runtime.cudaMemsetAsync(byte, 0, ctypes.c_size_t(1), stream), byte.value


ENDING = {
    "allocate": (UNSUPPORTED, lambda r: r.cudaMalloc(ctypes.byref(ctypes.c_void_p()), 8)),
    "wait": (UNSUPPORTED, lambda r: r.cudaStreamSynchronize(STREAM)),
    "launch elsewhere": (IMPLICIT, lambda r: Probe().launch(stream=0)),
    "write elsewhere": (IMPLICIT, lambda r: _memset(r, None)[0]),
}


@pytest.mark.parametrize("what", ENDING)
def test_what_ends_a_recording(runtime, what):
    expected, act = ENDING[what]
    assert _begin(runtime) == 0
    assert act(runtime) == expected
    assert _end(runtime)[0] == INVALIDATED
    assert not _is_capturing(runtime)
    assert Probe().launch() == 0  # afterwards all is as before


def test_memory_is_written_at_the_replay(runtime):
    byte, ready = ctypes.create_string_buffer(b"x"), ctypes.c_void_p()
    assert _begin(runtime) == 0
    assert runtime.cudaMemsetAsync(byte, ord("y"), ctypes.c_size_t(1), STREAM) == 0
    _, graph = _end(runtime)
    assert byte.value == b"x"
    assert runtime.cudaGraphInstantiate(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) == 0
    assert runtime.cudaGraphLaunch(ready, STREAM) == 0
    assert byte.value == b"y"
    assert runtime.cudaGraphDestroy(graph) == runtime.cudaGraphExecDestroy(ready) == 0


def test_streams_that_cannot_be_recorded(runtime):
    assert _begin(runtime, None) == UNSUPPORTED  # the default stream
    assert _begin(runtime, ctypes.c_void_p(1)) == INVALID_HANDLE
    assert _end(runtime)[0] == UNMATCHED
    assert _begin(runtime) == 0
    assert _begin(runtime) == UNSUPPORTED
    found = []
    other = threading.Thread(target=lambda: found.extend((_end(runtime)[0], Probe().launch())))
    other.start()
    other.join()
    assert found == [WRONG_THREAD, INVALID_HANDLE]  # another thread neither ends it nor launches
    error, graph = _end(runtime)
    assert (error, runtime.cudaGraphDestroy(graph)) == (0, 0)


def test_arguments_are_copied(runtime):
    """By the sizes that a kernel's PTX declares."""
    probe, value = Probe(), ctypes.c_uint64(7)
    sizes = (ctypes.c_size_t * 1)(8)
    runtime.fake_cudart_parameters(f"probe{probe.host.value}".encode(), sizes, 1)
    seen, ready = [], ctypes.c_void_p()

    @cuda_driver._CALLBACK
    def note(name, grid, block, shared, arguments, stream):
        seen.append(ctypes.c_uint64.from_address(arguments[0]).value)
        return 0

    runtime.fake_cudart_on_launch(note, ctypes.c_int(4), STREAM)
    assert _begin(runtime) == 0
    given = (ctypes.c_void_p * 1)(ctypes.addressof(value))
    one, block = Dim3(1, 1, 1), Dim3(32, 1, 1)
    assert runtime.cudaLaunchKernel(probe.host, one, block, given, ctypes.c_size_t(0), STREAM) == 0
    _, graph = _end(runtime)
    value.value = 8
    assert runtime.cudaGraphInstantiate(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) == 0
    assert runtime.cudaGraphLaunch(ready, STREAM) == 0
    assert seen == [7]
    assert runtime.cudaGraphDestroy(graph) == runtime.cudaGraphExecDestroy(ready) == 0
    declared = cuda_driver._parameters()
    assert {tuple(s) for name, s in declared.items() if "attention_fwd_kernel" in name} == {
        (144, 1)
    }
