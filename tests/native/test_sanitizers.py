"""The C++ backend under AddressSanitizer and UndefinedBehaviorSanitizer, for one instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertfast import extension

ROOT = Path(__file__).parents[2]
OBJECTS = "build/sanitized"  # kept, so that only what changed is compiled again
FLAGS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"


def runtime(name: str) -> str:
    found = subprocess.run(
        [os.environ.get("CXX", "g++"), f"-print-file-name={name}"], capture_output=True, text=True
    ).stdout.strip()
    return found if Path(found).is_absolute() else ""


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++") or not runtime("libasan.so"),
    reason="g++ with its sanitizers' runtimes is not installed",
)


@pytest.fixture(scope="module")
def module() -> Path:
    isa = extension.cpu.variant()  # the widest, which has most code of its own
    command = [sys.executable, "setup.py", "-q", "build_ext", "--isa", isa, "--objects", OBJECTS]
    command += ["--build-lib", f"{OBJECTS}/lib"]
    environment = {**os.environ, "CXXFLAGS": FLAGS, "LDFLAGS": FLAGS, "BERTFAST_BUILD": "cpu"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = (ROOT / OBJECTS / "lib" / "bertfast").glob(Path(extension.cpu.__file__).name)
    return built


def drive(module: Path, *arguments: str) -> subprocess.CompletedProcess:
    driver = Path(__file__).with_name("sanitizer_driver.py")
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')}:{runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch free little when they end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(driver), str(module), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_every_case_is_clean(module):
    run = drive(module)
    assert run.returncode == 0, run.stderr[:3000]  # the report stands first, then a long stack
    assert run.stdout.endswith("clean\n")
    assert "runtime error" not in run.stderr


def test_the_sanitizer_sees_an_overflow(module):
    run = drive(module, "overflow")
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr
    assert "pack" in run.stderr
