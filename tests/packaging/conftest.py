"""One wheel and one sdist for all tests of packaging; what uses them shares a process of pytest-xdist (group wheel)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dist(tmp_path_factory) -> Path:
    """The folder of a wheel with the CUDA kernels, where nvcc is, and of an sdist.

    Built where importing torch fails; the objects of the last build, as of `make lint`, are reused.
    """
    folder = tmp_path_factory.mktemp("dist")
    (folder / "torch.py").write_text("raise ImportError('the build must not import torch')")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder]
    command += ["build", "--build-base", folder / "build", "bdist_wheel", "--dist-dir", folder]
    command += ["sdist", "--dist-dir", folder]
    environment = {**os.environ, "PYTHONPATH": str(folder), "BERTFAST_BUILD": "auto"}
    for name in ("BERTFAST_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):  # the targets that are shipped
        environment.pop(name, None)
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(dist) -> Path:
    (found,) = dist.glob("bertfast-*.whl")
    return found
