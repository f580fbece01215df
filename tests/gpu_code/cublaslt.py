"""cuBLASLt on a machine without a GPU: fake_cublaslt.cpp in the place of what torch would have loaded.

    with cuda_driver.emulated() as device, cublaslt.present(device) as products:
        with dispatch.use_backend("cuda:cublaslt"):
            ops.qkv_projection(...)
    products    # what each product touched

A product may touch what kernels may: the tensors whose addresses were taken for the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from numpy.lib.stride_tricks import as_strided

from gpu_code import cuda_driver
from gpu_code.kept import kept

SOURCE = Path(__file__).with_name("fake_cublaslt.cpp")
NAMES = ("a", "b", "vector", "workspace", "d")  # of what a product touches


class Touched(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_size_t),
        ("bytes", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("stride", ctypes.c_uint64),
        ("written", ctypes.c_int32),
    ]


_WATCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Touched), ctypes.c_int)


def build(name: str = "libcublasLt.so.13", source: Path = SOURCE) -> Path:
    """A library of that name, by which the loader knows it; made once for this source."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]

    def make(path: Path) -> None:
        flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-x", "c++", f"-Wl,-soname,{name}"]
        subprocess.run(["g++", *flags, source, "-o", path], check=True)

    return kept(f"{name}-{digest}", make)


@functools.cache
def library() -> ctypes.CDLL:
    """The fake library, in this process from now on."""
    return ctypes.CDLL(str(build()))


@contextlib.contextmanager
def present(device: cuda_driver.Device | None = None) -> Iterator[list[dict[str, Touched]]]:
    """Inside the block products are computed, and held to the memory of the device's call; gives what each touched."""
    products: list[dict[str, Touched]] = []

    @_WATCH
    def watch(touched, count):
        found = {name: Touched.from_buffer_copy(touched[i]) for i, name in enumerate(NAMES)}
        products.append(found)
        try:
            if device is not None and device.execute:
                _check(device, found)
        except Exception as fault:  # an exception cannot pass through the C++ frames
            device.fault = device.fault or fault
            return 1
        return 0

    library().fake_cublaslt_watch(watch, cuda_driver.runtime().fake_cudart_run)
    try:
        yield products
    finally:
        library().fake_cublaslt_watch(_WATCH(), None)


def _check(device: cuda_driver.Device, found: dict[str, Touched]) -> None:
    """Every byte that is touched belongs to the call, and what is read was written."""
    buffers = device.memory.buffers([(f"{x.dtype} {list(x.shape)}", x) for x in device.pointed])
    for name, touched in found.items():
        if not touched.count:
            continue
        size = (touched.count - 1) * touched.stride + touched.bytes
        first, last = touched.address, touched.address + size
        own = [b for b in buffers if b.address <= first and last <= b.address + b.size]
        if not own:
            raise MemoryError(f"{name} of a product, {size} bytes, is in no tensor of the call")
        if own[0].written is None:
            continue
        shape, strides = (touched.count, touched.bytes), (touched.stride, 1)
        pieces = as_strided(own[0].written[first - own[0].address :], shape, strides)
        if touched.written:
            pieces[...] = True
        elif not pieces.all():
            raise MemoryError(f"{name} of a product was never written")
