"""The CUDA kernels of one target, from the PTX that all targets are made of: what each takes, and is made of."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gpu_code import cuda_driver, nvcc
from gpu_code.gates import loops

_PROPERTIES = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)
_STATIC = re.compile(r"(\d+) bytes smem")
_FUNCTION = re.compile(r"Function : (\w+)")


class Cubin(NamedTuple):
    """One kernel of one target. Bytes of a thread: stack, spills; of a block: shared, which is static."""

    registers: int
    stack: int
    spills: int
    shared: int
    products: int  # HMMA instructions
    turns: list[loops.Turn]  # of the hot loops
    reads: int  # of 16 bytes, the most that follow each other without a branch


def compiled(target: int) -> dict[str, Cubin]:
    """Every shipped kernel by its mangled name."""
    files = sorted(cuda_driver.build().glob("*.ptx"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda file: _compile(file, target, Path(folder)), files)
        return {name: cubin for part in parts for name, cubin in part.items()}


def _compile(ptx: Path, target: int, folder: Path) -> dict[str, Cubin]:
    cubin = folder / f"{ptx.stem}.cubin"
    said = _say(Path(nvcc.find()).with_name("ptxas"), "-v", f"-arch=sm_{target}", ptx, "-o", cubin)
    sass = sass_of(cubin)
    found = {}
    for match in _PROPERTIES.finditer(said):
        static = _STATIC.search(match["rest"])
        spills = int(match["stores"]) + int(match["loads"])
        found[match["name"]] = Cubin(
            int(match["registers"]), int(match["stack"]), spills, int(static[1]) if static else 0,
            sass[match["name"]].count(" HMMA."), loops.turns(sass[match["name"]]),
            loops.reads(sass[match["name"]]),
        )  # fmt: skip
    return found


def sass_of(cubin: Path) -> dict[str, str]:
    """The instructions of each kernel of a file, as text."""
    from gpu_code.gates.resources import CUOBJDUMP

    _, *pieces = _FUNCTION.split(_say(CUOBJDUMP, "--dump-sass", cubin))
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def _say(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class Shape(NamedTuple):
    """Of a kernel's launches: threads of a block, and the most dynamic shared memory in bytes."""

    threads: int
    shared: int


def shapes(launches: Iterable[cuda_driver.Launch]) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for launch in launches:
        x, y, z = launch.block
        most = max(launch.shared, found.get(launch.name, Shape(0, 0)).shared)
        found[launch.name] = Shape(x * y * z, most)
    return found
