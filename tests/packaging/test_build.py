"""What setup.py builds and what it refuses, with compilers of a few lines in the place of g++ and nvcc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
import pytest
import setuptools

ROOT = Path(__file__).parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nvcc runs on Linux only")

# Notes its words, and makes what it is asked for; what -MF names is empty.
COMPILER = """\
#!/bin/sh
echo "$0 $*" >> "$LOG"
while [ $# -gt 0 ]; do
  case $1 in -o) : > "$2" ;; -MF) : > "$2" ;; esac
  shift
done
sleep 0.02
echo done >> "$LOG"
"""
NVCC = """\
#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {release}, V0"; exit ;;
  --dryrun*) echo "#$ TOP=$(dirname "$0")/.." >&2; exit ;;
esac
{rest}
"""
PARTS = (
    "lib/libcudart_static.a",
    "include/cuda_runtime.h",
    "include/crt/host_config.h",
    "nvvm/bin/cicc",
)


class Workshop:
    """A folder with a compiler, a CUDA toolkit, and what setup.py made with them."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log"
        self.toolkit = folder / "toolkit"
        self.lib = folder / "lib/bertfast"
        self.tool(folder / "g++", COMPILER)
        for part in PARTS:
            (self.toolkit / part).parent.mkdir(parents=True, exist_ok=True)
            (self.toolkit / part).touch()
        self.nvcc()

    def tool(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def nvcc(self, release: str = "13.0", rest: str = COMPILER) -> None:
        self.tool(self.toolkit / "bin/nvcc", NVCC.format(release=release, rest=rest))

    def build(self, *, python=sys.executable, **variables) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("BERTFAST", "TORCH"))}
        clean.pop("MAX_JOBS", None)
        given = {"CUDA_HOME": str(self.toolkit), "CXX": str(self.folder / "g++"), **variables}
        command = [python, "setup.py", "-q", "build_ext", "--build-lib", self.lib.parent]
        command += ["--objects", self.folder / "objects"]
        return subprocess.run(
            command, cwd=ROOT, env={**clean, "LOG": str(self.log), **given}, capture_output=True, text=True
        )  # fmt: skip

    def made(self) -> set[str]:
        return {path.name.removesuffix(SUFFIX) for path in self.lib.glob("*.so*")}


@pytest.fixture
def workshop(tmp_path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A Python that has what setup.py needs, and not the packages of nvcc."""
    folder = tmp_path_factory.mktemp("bare")
    command = [sys.executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(command, check=True)
    python = folder / "bin/python"
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    for module in (ninja, pybind11, setuptools):
        source = Path(module.__file__).parent
        Path(purelib, source.name).symlink_to(source)
        if (hack := source.parent / "_distutils_hack").is_dir() and module is setuptools:
            Path(purelib, "_distutils_hack").symlink_to(hack)
    return python


def without_nvcc() -> str:
    """PATH less the folders that have an nvcc."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(f for f in folders if not Path(f, "nvcc").exists())


def test_with_nvcc_both_modules_are_built(workshop):
    done = workshop.build()
    assert done.returncode == 0, done.stderr
    assert workshop.made() == {"_cpu", "_cuda"}
    nvcc = [line for line in workshop.log.read_text().splitlines() if "bin/nvcc" in line]
    assert len(nvcc) == len(list(ROOT.glob("csrc/*/cuda*.cu")))
    wanted = "arch=compute_80,code=[sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,compute_80]"
    assert all(wanted in line and "--compress-mode=size" in line for line in nvcc)


def test_max_jobs(workshop):
    assert workshop.build(MAX_JOBS="1").returncode == 0
    lines = workshop.log.read_text().splitlines()
    assert len(lines) > 20
    assert set(lines[1::2]) == {"done"}  # no compiler began before the one before it ended


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"TORCH_CUDA_ARCH_LIST": "9.0;8.0+PTX"}, "[sm_80,sm_90,compute_80]"),
        ({"TORCH_CUDA_ARCH_LIST": "7.5 8.6"}, "[sm_86]"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0", "BERTFAST_CUDA_ARCHS": "120"}, "[sm_120]"),
    ],
)
def test_the_targets_asked_for(workshop, variables, code):
    done = workshop.build(**variables)
    assert done.returncode == 0, done.stderr
    assert f"code={code}" in workshop.log.read_text()
    assert ("no kernels for 75" in done.stderr) == ("7.5" in str(variables))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BERTFAST_BUILD": "gpu"}, "BERTFAST_BUILD: expected auto, cpu or cuda, got 'gpu'"),
        ({"BERTFAST_CUDA_ARCHS": "ampere"}, "BERTFAST_CUDA_ARCHS: expected capabilities as in"),
        ({"BERTFAST_CUDA_ARCHS": "70"}, "need compute capability 8.0 or newer"),
        ({"TORCH_CUDA_ARCH_LIST": "Ampere"}, "BERTFAST_CUDA_ARCHS goes before it"),
        ({"MAX_JOBS": "two"}, "MAX_JOBS: expected a number from 1, got 'two'"),
    ],
)
def test_wrong_variables_are_refused(workshop, variables, message):
    done = workshop.build(**variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "_cuda" not in workshop.made()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("build", ["auto", "cuda"])
def test_a_partial_toolkit_is_refused(workshop, part, build):
    (workshop.toolkit / part).unlink()
    done = workshop.build(BERTFAST_BUILD=build)
    assert done.returncode == 1
    assert f"{Path(part).name} is not. Install nvidia-" in done.stderr
    assert workshop.made() == set()


def test_a_source_that_does_not_compile_leaves_no_module(workshop):
    assert workshop.build().returncode == 0
    shutil.rmtree(workshop.folder / "objects")
    workshop.nvcc(rest='echo "kernel.cu(1): error: nonsense" >&2; exit 1')
    done = workshop.build()
    assert done.returncode == 1
    assert "kernel.cu(1): error: nonsense" in done.stdout
    assert "the native code did not compile" in done.stderr
    assert "_cuda" not in workshop.made()


def test_a_build_for_cpus_leaves_no_older_cuda_module(workshop):
    assert workshop.build().returncode == 0
    done = workshop.build(BERTFAST_BUILD="cpu")
    assert (done.returncode, workshop.made()) == (0, {"_cpu"})


def test_without_nvcc_a_build_is_for_cpus_and_says_so(workshop, bare):
    done = workshop.build(python=bare, CUDA_HOME="", PATH=without_nvcc())
    assert (done.returncode, workshop.made()) == (0, {"_cpu"}), done.stderr
    assert "no nvcc found: building for CPUs only" in done.stderr
    assert "pip install nvidia-cuda-nvcc" in done.stderr
    done = workshop.build(python=bare, CUDA_HOME="", PATH=without_nvcc(), BERTFAST_BUILD="cuda")
    assert done.returncode == 1
    assert "BERTFAST_BUILD=cuda: no nvcc found" in done.stderr


def test_an_nvcc_too_old_is_none(workshop, bare):
    workshop.nvcc(release="12.4")
    done = workshop.build(python=bare, PATH=without_nvcc())
    assert (done.returncode, workshop.made()) == (0, {"_cpu"}), done.stderr
    assert "passed over: CUDA 12.4; CUDA 12.8 is the oldest" in done.stderr


def test_nvcc_of_pypi_is_found_without_a_system_one(workshop, bare):
    purelib = Path(bare).parents[1] / f"lib/python3.{sys.version_info[1]}/site-packages"
    (purelib / "nvidia").mkdir()
    (purelib / "nvidia/cu13").symlink_to(workshop.toolkit)
    done = workshop.build(python=bare, CUDA_HOME="", PATH=without_nvcc(), BERTFAST_BUILD="cuda")
    shutil.rmtree(purelib / "nvidia")
    assert (done.returncode, workshop.made()) == (0, {"_cpu", "_cuda"}), done.stderr


def test_the_packages_of_nvcc_are_the_same_everywhere():
    """The extra, cibuildwheel, the README and the build's advice name the same packages and versions."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = pyproject[pyproject.index("\nnvcc = [") : pyproject.index("\ntest = [")]
    pins = set(re.findall(r"nvidia-[\w-]+==[\d.*]+", extra))
    assert len(pins) == 5
    linux = pyproject[pyproject.index("[tool.cibuildwheel.linux]") :]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in (linux, readme):
        assert set(re.findall(r"nvidia-[\w-]+==[\d.*]+", text)) == pins
    advice = (ROOT / "build_tools/cuda_toolkit.py").read_text(encoding="utf-8")
    (packages,) = re.findall(r'^PACKAGES = "(.*)"$', advice, re.M)
    assert set(packages.split()) == {pin.partition("==")[0] for pin in pins}
