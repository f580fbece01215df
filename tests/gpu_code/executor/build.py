"""Compiles the runtime once per machine and loads it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess

from gpu_code.kept import kept

SOURCES = pathlib.Path(__file__).with_name("runtime")
_FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
]


class Handler:
    """One function of the runtime: its number, and the widths of its destinations and sources in bytes."""

    __slots__ = ("index", "outputs", "sources")

    def __init__(self, index: int, signature: str):
        self.index = index
        outputs, sources = signature.split("=")
        self.outputs, self.sources = self._widths(outputs), self._widths(sources)

    @staticmethod
    def _widths(text: str) -> tuple[int | None, ...]:
        """0 for a predicate, None for an address."""
        known = {"p": 0, "a": None}
        return tuple(known[c] if c in known else int(c) for c in text.split(",") if c)


class Runtime:
    """The loaded library: `run`, and its handlers by name."""

    def __init__(self, path: pathlib.Path):
        self.library = library = ctypes.CDLL(str(path))
        library.handler_name.restype = library.handler_signature.restype = ctypes.c_char_p
        library.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.run = library.run
        self.handlers = {
            library.handler_name(k).decode(): Handler(k, library.handler_signature(k).decode())
            for k in range(library.handler_count())
        }


@functools.cache
def runtime(folder: pathlib.Path = SOURCES, optimize: str = "-O3") -> Runtime:
    """The runtime, compiled if no library of these sources for this CPU is in the cache."""
    sources = sorted(folder.iterdir())
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
    flags = [optimize, *_FLAGS, *_cpu_flags(compiler)]
    key = hashlib.sha256(repr((compiler, flags, _cpu())).encode())
    for source in sources:
        key.update(source.name.encode() + source.read_bytes())
    compile_ = functools.partial(_compile, compiler, flags, sources)
    return Runtime(kept(f"runtime-{key.hexdigest()[:20]}.so", compile_))


def _compile(compiler, flags, sources, path: pathlib.Path):
    units = [source for source in sources if source.suffix == ".cpp"]
    objects = [path.with_name(f"{unit.stem}.o") for unit in units]
    jobs = [
        subprocess.Popen(
            [compiler, *flags, "-c", unit, "-o", out], stderr=subprocess.PIPE, text=True
        )
        for unit, out in zip(units, objects, strict=True)
    ]
    errors = [job.communicate()[1] for job in jobs]
    for unit, job, error in zip(units, jobs, errors, strict=True):
        if job.returncode:
            raise RuntimeError(f"{compiler} cannot compile {unit.name}:\n{error}")
    subprocess.run([compiler, "-shared", "-o", path, *objects], check=True)


def _cpu_flags(compiler: str) -> list[str]:
    probe = [compiler, "-march=native", "-E", "-x", "c++", os.devnull]
    works = subprocess.run(probe, capture_output=True).returncode == 0
    return ["-march=native"] if works else []


def _cpu() -> str:
    """What tells CPUs apart that cannot run each other's -march=native code."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    said = {line for line in lines if line.startswith(("flags", "model name", "Features"))}
    return repr((platform.machine(), platform.processor(), sorted(said)))
