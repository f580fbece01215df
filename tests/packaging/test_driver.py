"""The shipped `_cuda` asks the driver for its version: a libcuda of three lines stands in for one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import zipfile

import pytest

from gpu_code import nvcc

pytestmark = [
    pytest.mark.xdist_group("wheel"),
    pytest.mark.skipif(sys.platform != "linux", reason="libcuda.so.1 is Linux's name"),
    pytest.mark.skipif(bool(nvcc.absent()), reason=nvcc.absent() or "-"),
]
LIBCUDA = "int cuDriverGetVersion(int* version) {{ *version = {version}; return {status}; }}\n"
ASK = "from bertfast import extension; print(extension.cuda.__file__, extension.driver_refuses(), sep='\\n')"
NONE = "no CUDA driver (libcuda.so.1) on this machine; the kernels need CUDA 13.0 (driver 580 or newer)"


@pytest.fixture(scope="module")
def package(wheel, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("package")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return str(folder)


@pytest.fixture
def ask(package, tmp_path):
    """Runs Python with the wheel's bertfast and a driver of a version, or none; gives its output."""

    def run(version: int | None, *arguments: str, status: int = 0, source: str = LIBCUDA) -> str:
        if version is not None:
            (tmp_path / "cuda.c").write_text(source.format(version=version, status=status))
            library = tmp_path / "libcuda.so.1"
            subprocess.run(
                ["gcc", "-shared", "-fPIC", tmp_path / "cuda.c", "-o", library], check=True
            )
        paths = {"PYTHONPATH": package, "LD_LIBRARY_PATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **paths}, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    return run


@pytest.mark.parametrize(
    ("version", "status", "reason"),
    [
        (12040, 0, "the driver serves CUDA 12.4, the kernels need 13.0 (driver 580 or newer)"),
        (13000, 0, "None"),
        (13020, 0, "None"),
        (14000, 0, "None"),
        (13000, 3, NONE),  # a driver that cannot say its version serves nothing
    ],
)
def test_a_driver(ask, package, version, status, reason):
    file, said = ask(version, "-c", ASK, status=status).splitlines()
    assert file.startswith(package)
    assert said == reason


def test_a_library_that_is_no_driver(ask):
    assert ask(0, "-c", ASK, source="int other = {version} + {status};\n").splitlines()[1] == NONE


def test_no_driver(ask):
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has a driver")
    assert ask(None, "-c", ASK).splitlines()[1] == NONE


def test_info_tells_of_the_driver(ask):
    lines = ask(12040, "-m", "bertfast", "info").splitlines()
    (kernels,) = [line for line in lines if line.startswith("cuda kernels ")]
    assert kernels.endswith("sm_100, sm_120, PTX for others; CUDA 13.0")
    said = [" ".join(line.split()) for line in lines if line.startswith("gpu ")]
    assert said[0].startswith("gpu the driver serves CUDA 12.4, the kernels need 13.0 (driver 580")
