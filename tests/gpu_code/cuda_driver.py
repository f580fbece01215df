"""bertfast's CUDA form on a machine without a GPU: the shipped host code launches, the PTX that nvcc made is executed.

    with emulated() as device, dispatch.use_backend("cuda"):
        ops.linear_gelu(x, weight, bias)            # x, weight, bias: tensors on the CPU
    device.launches[0].report

`_cuda` is built from the same sources as the shipped module, for PTX only, and linked with fake_cudart.cpp in the place
of libcudart: a launch comes back here with the kernel's name, grid, block, shared bytes and arguments. Every live
tensor is memory that a kernel may touch; what torch allocates inside the block is poisoned and counts as unwritten.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pybind11
import torch
from torch import Tensor

from bertfast import extension
from gpu_code import executor, nvcc
from gpu_code.memory import Memory

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


@dataclass
class Launch:
    """One launch of a CUDA kernel."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    report: object = None


@dataclass
class Device:
    """How launches are executed, and those so far."""

    options: dict
    execute: bool
    launches: list[Launch] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    fault: Exception | None = None


_DEVICE: list[Device] = []


def sources() -> list[Path]:
    """Every .cu file that is shipped."""
    return sorted((ROOT / "csrc").glob("*/cuda*.cu"))


@functools.cache
def build() -> Path:
    """The folder with the test's _cuda and the PTX of each .cu, made once for these sources and compilers."""
    version = subprocess.run([nvcc.find(), "--version"], capture_output=True, text=True).stdout
    files = [*sorted((ROOT / "csrc").rglob("*")), HERE / "fake_cudart.cpp"]
    text = version + sys.version + "".join(f"{f}\n{f.read_text()}" for f in files if f.is_file())
    folder = nvcc.CACHE / f"cuda-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not folder.exists():
        nvcc.CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=nvcc.CACHE) as made:
            _compile(Path(made))
            with contextlib.suppress(OSError):  # another process was first
                os.rename(made, folder)
                os.mkdir(made)
    return folder


def _compile(folder: Path) -> None:
    common = ["-O2", "-std=c++17", f"-I{ROOT / 'csrc'}"]
    host = ["g++", *common, "-fPIC", "-c"]
    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    toolkit = f"-I{_include()}"
    target = [nvcc.find(), *common, "--expt-relaxed-constexpr", "-arch=compute_80"]
    commands = [
        [
            *host,
            *python,
            toolkit,
            "-DBF_CUDA",
            '-DBF_CUDA_TARGETS="80+PTX"',
            ROOT / "csrc/bindings.cpp",
        ],
        [*host, HERE / "fake_cudart.cpp"],
        *([*host, toolkit, path] for path in (ROOT / "csrc/common").glob("cuda_*.cpp")),
    ]
    objects = [folder / f"{i}.o" for i in range(len(commands))]
    commands = [[*c, "-o", o] for c, o in zip(commands, objects, strict=True)]
    for path in sources():
        name = f"{path.parent.name}_{path.stem}"
        objects.append(folder / f"{name}.o")
        flags = ["-code=compute_80", "-Xcompiler", "-fPIC", "-c", path, "-o", objects[-1]]
        commands.append([*target, *flags])
        commands.append([*target, "-ptx", "-lineinfo", path, "-o", folder / f"{name}.ptx"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    _run(["g++", "-shared", *objects, "-o", folder / f"_cuda{_suffix()}"])


def _suffix() -> str:
    return importlib.machinery.EXTENSION_SUFFIXES[0]


def _include() -> Path:
    found = subprocess.run(
        [nvcc.find(), "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
        capture_output=True, text=True,
    )  # fmt: skip
    line = next(x for x in (found.stdout + found.stderr).splitlines() if x.startswith("#$ TOP="))
    return Path(line.removeprefix("#$ TOP=").strip()).resolve() / "include"


def _run(command: list) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


@functools.cache
def module() -> ModuleType:
    """The test's _cuda, imported; its launches arrive at the innermost `emulated`."""
    path = build() / f"_cuda{_suffix()}"
    spec = importlib.util.spec_from_file_location("bertfast._cuda", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    ctypes.CDLL(str(path)).fake_cudart_on_launch(_on_launch, ctypes.c_int(4))
    return made


@functools.cache
def kernels() -> dict:
    """Every kernel of the shipped .cu files, by its mangled name."""
    found = {}
    for path in sorted(build().glob("*.ptx")):
        found |= executor.load(path.read_text(), name=path.stem).kernels
    return found


@contextlib.contextmanager
def emulated(
    *, execute: bool = True, check: bool = True, order: str = "forward", seed: int = 0
) -> Iterator[Device]:
    """Makes `_cuda` compute on CPU tensors inside the block; options as those of triton_driver.emulated."""
    device = Device({"check": check, "order": order, "seed": seed}, execute)
    saved = {name: getattr(extension, name) for name in _REPLACED}
    extension.cuda, extension.CUDA_REASON = module(), None
    extension.on_gpu = lambda x: True
    extension.driver_refuses = lambda: None
    extension._current = lambda _: contextlib.nullcontext(0)
    _DEVICE.append(device)
    try:
        with device.memory:
            yield device
    finally:
        _DEVICE.pop()
        for name, value in saved.items():
            setattr(extension, name, value)
    if device.fault is not None:
        raise device.fault


_REPLACED = ("cuda", "CUDA_REASON", "on_gpu", "driver_refuses", "_current")


@_CALLBACK
def _on_launch(name, grid, block, shared, arguments, stream):
    device = _DEVICE[-1]
    launch = Launch(name.decode(), tuple(grid[:3]), tuple(block[:3]), shared)
    device.launches.append(launch)
    try:
        if device.execute:
            launch.report = _execute(device, launch, arguments)
    except Exception as fault:  # an exception cannot pass through the C++ frames
        device.fault = device.fault or fault
        return 1
    return 0


def _execute(device: Device, launch: Launch, arguments) -> object:
    kernel = kernels()[launch.name]
    size = max((offset + width for offset, width in kernel.parameters), default=0)
    block = bytearray(size)
    for i, (offset, width) in enumerate(kernel.parameters):
        block[offset : offset + width] = ctypes.string_at(arguments[i], width)
    return executor.launch(
        kernel,
        grid=launch.grid,
        block=launch.block,
        arguments=bytes(block),
        shared=launch.shared,
        buffers=_live_memory(device.memory),
        **device.options,
    )


def _live_memory(memory: Memory) -> list:
    """The storage of every tensor that Python can still reach, as the executor's buffers."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            if storage.nbytes():
                storages[storage.data_ptr()] = storage
    return [
        executor.Buffer(address, s.nbytes(), f"storage {i}", "inout", written=memory.written(s))
        for i, (address, s) in enumerate(storages.items())
    ]
