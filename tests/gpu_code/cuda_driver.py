"""The backend cuda on a machine without a GPU: the shipped host code launches, the PTX that nvcc made is executed.

    with emulated() as device, dispatch.use_backend("cuda"):
        ops.linear_gelu(x, weight, bias)            # x, weight, bias: tensors on the CPU
    device.launches[0].report

`_cuda` is built from the same sources as the shipped module, for PTX only, and linked with fake_cudart.cpp in the place
of libcudart: a launch that a GPU would take comes back here with the kernel's name, grid, block, shared bytes and
arguments. A kernel may touch the tensors whose addresses were taken for the call, each with the extent that its strides
span; what torch allocates inside the block is poisoned and counts as unwritten.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pybind11
from torch import Tensor

from bertfast import extension
from bertfast.ops import _graphs
from gpu_code import executor, nvcc
from gpu_code.kept import kept
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
STREAM = 0x57AE0  # the handle of the caller's stream; not 0, which a kernel launched on no stream has too


@dataclass
class Launch:
    """One launch of a CUDA kernel."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    report: object = None
    again: Callable[[str], object] | None = None  # runs another PTX text, on memory as it was left
    tensors: list[Tensor] = field(default_factory=list)  # what `again` reads and writes


@dataclass
class Device:
    """How launches are executed, and those so far."""

    options: dict
    execute: bool
    mutate: Callable[[str], str] | None
    keep: bool
    blocks: Callable[[tuple], list] | None
    launches: list[Launch] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    pointed: list[Tensor] = field(default_factory=list)  # what the call's addresses belong to
    fault: Exception | None = None

    def launched_in_all(self) -> list[str]:
        """The kernels launched so far, then torch's operations that each launch one on a GPU."""
        return [launch.name for launch in self.launches] + self.memory.launching()


_DEVICE: list[Device] = []
_ENTRY = re.compile(r"\.entry (\w+)\(")
_STATIC = re.compile(_ENTRY.pattern + r"|^\t\.shared .*\[(\d+)\];", re.M)
_PARAMETER = re.compile(
    _ENTRY.pattern + r"|^\t\.param (?:\.align \d+ )?\.[a-z](\d+) [^\[\n,]*(?:\[(\d+)\])?,?$", re.M
)


def sources() -> list[Path]:
    """Every .cu file that is shipped."""
    return sorted((ROOT / "csrc").glob("*/cuda*.cu"))


@functools.cache
def build() -> Path:
    """The folder with the test's _cuda and the PTX of each .cu, made once for these sources and compilers."""
    version = subprocess.run([nvcc.find(), "--version"], capture_output=True, text=True).stdout
    native = (".cpp", ".h", ".cu", ".cuh")
    files = [f for f in sorted((ROOT / "csrc").rglob("*")) if f.suffix in native]
    files.append(HERE / "fake_cudart.cpp")
    text = version + sys.version + "".join(f"{f}\n{f.read_text()}" for f in files)
    return kept(f"cuda-{hashlib.sha256(text.encode()).hexdigest()[:16]}", _compile)


def _compile(folder: Path) -> None:
    folder.mkdir()
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
        *([*host, toolkit, path] for path in (ROOT / "csrc").glob("*/cuda_*.cpp")),
    ]
    objects = [folder / f"{i}.o" for i in range(len(commands))]
    commands = [[*c, "-o", o] for c, o in zip(commands, objects, strict=True)]
    for path in sources():
        name = f"{path.parent.name}_{path.stem}"
        objects.append(folder / f"{name}.o")
        between = folder / name
        between.mkdir()
        flags = ["-code=compute_80", "-lineinfo", "-Xcompiler", "-fPIC", "-c", path]
        commands.append([*target, *flags, "-o", objects[-1], "--keep", "--keep-dir", between])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    for path in sources():
        name = f"{path.parent.name}_{path.stem}"
        os.rename(folder / name / f"{path.stem}.ptx", folder / f"{name}.ptx")
        shutil.rmtree(folder / name)
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
    """The test's _cuda, imported."""
    path = build() / f"_cuda{_suffix()}"
    # not the shipped module's name: pybind11 would give that one, once it was imported
    spec = importlib.util.spec_from_file_location("gpu_code._cuda", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@functools.cache
def runtime() -> ctypes.CDLL:
    """The fake runtime that the test's _cuda is linked with, told what kernels declare: shared memory, parameters."""
    library = ctypes.CDLL(str(build() / f"_cuda{_suffix()}"))
    for kernel, size in static_shared().items():
        library.fake_cudart_static_shared(kernel.encode(), ctypes.c_size_t(size))
    for kernel, sizes in _parameters().items():
        given = (ctypes.c_size_t * len(sizes))(*sizes)
        library.fake_cudart_parameters(kernel.encode(), given, len(sizes))
    return library


def _parameters() -> dict[str, list[int]]:
    """Bytes of each of a kernel's parameters."""
    found, kernel = {}, None
    for path in sorted(build().glob("*.ptx")):
        for entry, bits, count in _PARAMETER.findall(path.read_text()):
            kernel = entry or kernel
            found.setdefault(kernel, [])
            if bits:
                found[kernel].append(int(bits) // 8 * int(count or 1))
    return found


def static_shared() -> dict[str, int]:
    """Bytes of shared memory that each kernel declares."""
    found, kernel = {}, None
    for path in sorted(build().glob("*.ptx")):
        for entry, size in _STATIC.findall(path.read_text()):
            kernel = entry or kernel
            found[kernel] = found.get(kernel, 0) + int(size or 0)
    return found


def entries() -> list[str]:
    """Every kernel that is shipped, by its mangled name."""
    return list(_units())


@functools.cache
def _units() -> dict[str, Path]:
    """Which PTX file holds each kernel, by its mangled name."""
    found = {}
    for path in sorted(build().glob("*.ptx")):
        found |= dict.fromkeys(_ENTRY.findall(path.read_text()), path)
    return found


@functools.cache
def _parts(path: Path) -> list[tuple[str | None, str]]:
    """A PTX file cut where kernels begin and end: (the kernel's name or None, text)."""
    parts, name, lines = [], None, []
    for line in path.read_text().splitlines(keepends=True):
        starts = _ENTRY.search(line)
        if starts:
            parts.append((name, "".join(lines)))
            name, lines = starts[1], []
        lines.append(line)
        if name and line == "}\n":
            parts.append((name, "".join(lines)))
            name, lines = None, []
    return [*parts, (name, "".join(lines))]


@functools.cache
def ptx(kernel: str) -> str:
    """The PTX of one kernel, with all that its file declares outside kernels; lines keep their numbers."""
    parts = _parts(_units()[kernel])
    return "".join(t if name in (None, kernel) else "\n" * t.count("\n") for name, t in parts)


@functools.lru_cache(maxsize=256)
def _load(code: str, kernel: str):
    return executor.load(code, name=_units()[kernel].stem)[kernel]


@contextlib.contextmanager
def emulated(
    *,
    execute: bool = True,
    check: bool = True,
    order: str = "forward",
    seed: int = 0,
    multiprocessors: int = 4,
    mutate: Callable[[str], str] | None = None,
    keep: bool = False,
    blocks: Callable[[tuple[int, int, int]], list[tuple]] | None = None,
) -> Iterator[Device]:
    """Makes `_cuda` compute on CPU tensors inside the block; options as those of triton_driver.emulated."""
    device = Device({"check": check, "order": order, "seed": seed}, execute, mutate, keep, blocks)
    _DEVICE.append(device)
    try:
        with _shipped(_on_launch, multiprocessors), device.memory, _noting_addresses(device):
            extension.launch = _forgetting(device, extension.launch)
            extension.replay = _forgetting(device, _replaying(device, extension.replay))
            yield device
    finally:
        _DEVICE.pop()


@contextlib.contextmanager
def launching_nothing(multiprocessors: int = 108) -> Iterator[Callable[[], int]]:
    """The shipped host code alone inside the block, for its time: launches are counted. Gives what tells how many."""
    with _shipped(_CALLBACK(), multiprocessors):
        yield runtime().fake_cudart_launches


@contextlib.contextmanager
def _shipped(on_launch: object, multiprocessors: int) -> Iterator[None]:
    """`_cuda` in the place of a GPU's on CPU tensors."""
    runtime().fake_cudart_on_launch(
        on_launch, ctypes.c_int(multiprocessors), ctypes.c_void_p(STREAM)
    )
    saved = {name: getattr(extension, name) for name in _REPLACED}
    extension.cuda, extension.CUDA_REASON = module(), None
    extension.on_gpu = lambda x: True
    extension.driver_refuses = lambda: None
    extension.current_stream = lambda _: contextlib.nullcontext(STREAM)
    try:
        yield
    finally:
        _graphs.forget()  # what was recorded here, by any test, goes with the device
        for name, value in saved.items():
            setattr(extension, name, value)


_REPLACED = (
    "cuda",
    "CUDA_REASON",
    "on_gpu",
    "driver_refuses",
    "current_stream",
    "launch",
    "replay",
)


@contextlib.contextmanager
def _noting_addresses(device: Device) -> Iterator[None]:
    """Every tensor whose address is taken may be touched by the next call's kernels."""
    plain = Tensor.data_ptr

    def data_ptr(tensor: Tensor) -> int:
        device.pointed.append(tensor)
        return plain(tensor)

    Tensor.data_ptr = data_ptr
    try:
        yield
    finally:
        Tensor.data_ptr = plain


def _forgetting(device: Device, launch: Callable) -> Callable:
    """`extension.launch` or `replay`; raises the fault that a kernel met, and forgets the call's addresses."""

    def run(*args, **fields):
        device.fault = None
        try:
            launch(*args, **fields)
        except RuntimeError:
            if device.fault is None:
                raise
        finally:
            device.pointed.clear()
        if device.fault is not None:
            raise device.fault

    return run


def _replaying(device: Device, replay: Callable) -> Callable:
    """`extension.replay`, whose launches read and write the arenas, too."""

    def run(*args):
        device.pointed += [arena.memory for arena in _graphs.arenas()]
        replay(*args)

    return run


@_CALLBACK
def _on_launch(name, grid, block, shared, arguments, stream):
    device = _DEVICE[-1]
    launch = Launch(name.decode(), tuple(grid[:3]), tuple(block[:3]), shared)
    device.launches.append(launch)
    try:
        if device.execute:
            _execute(device, launch, arguments)
    except Exception as fault:  # an exception cannot pass through the C++ frames
        device.fault = device.fault or fault
        return 1
    return 0


def _execute(device: Device, launch: Launch, arguments) -> None:
    code = ptx(launch.name)
    parameters = _load(code, launch.name).parameters
    given = bytearray(max((offset + width for offset, width in parameters), default=0))
    for i, (offset, width) in enumerate(parameters):
        given[offset : offset + width] = ctypes.string_at(arguments[i], width)
    named = [(f"{x.dtype} {list(x.shape)}", x) for x in device.pointed]
    buffers = device.memory.buffers(named)

    def run(code: str):
        return executor.launch(
            _load(code, launch.name),
            grid=launch.grid,
            block=launch.block,
            arguments=bytes(given),
            shared=launch.shared,
            buffers=buffers,
            blocks=device.blocks and device.blocks(launch.grid),
            **device.options,
        )

    if device.keep:
        launch.again, launch.tensors = run, list(device.pointed)
    launch.report = run(device.mutate(code) if device.mutate else code)
