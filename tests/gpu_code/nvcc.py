"""Finds nvcc and makes PTX of CUDA C++: CUDA_HOME, PATH, or the PyPI packages nvidia-cuda-nvcc and their kin."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import site
import subprocess
from pathlib import Path

from gpu_code.kept import kept


@functools.lru_cache
def find() -> str | None:
    """The path of nvcc, or None. An nvcc that cannot say its version is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    packages = [Path(folder) for folder in site.getsitepackages()]
    candidates = [
        *([Path(home, "bin", "nvcc")] if home else []),
        *([Path(found)] if (found := shutil.which("nvcc")) else []),
        *(nvcc for folder in packages for nvcc in sorted(folder.glob("nvidia/cu*/bin/nvcc"))),
        Path("/usr/local/cuda/bin/nvcc"),
    ]
    return next((str(path) for path in candidates if _works(path)), None)


def _works(nvcc: Path) -> bool:
    try:
        return subprocess.run([nvcc, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def absent() -> str:
    """Why what needs nvcc is skipped; empty where nvcc is present."""
    packages = (
        "nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-runtime, nvidia-cuda-cccl"
    )
    return "" if find() else f"no nvcc: neither CUDA_HOME, PATH nor the packages {packages} have it"


def ptx(source: Path, *flags: str, arch: int = 80) -> str:
    """The PTX of one .cu file, with source lines; kept between runs by source, flags and compiler."""
    command = [find(), "-ptx", f"-arch=compute_{arch}", "-lineinfo", "-O3", "-std=c++17", *flags]
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    key = "\n".join([*map(str, command), version, str(source), source.read_text()])
    name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.ptx"

    def make(path: Path) -> None:
        run = subprocess.run([*command, "-o", path, source], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"nvcc refuses {source.name}:\n{run.stderr}")

    return kept(name, make).read_text()
