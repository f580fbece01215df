"""Runs interpreted_parity.py in a process of its own and shows what failed there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness


def pytest_generate_tests(metafunc):
    """One process; with --all, which takes minutes an operation, one for each."""
    every = metafunc.config.getoption("--all")
    metafunc.parametrize("tests", [f"{name}-" for name in harness.OPERATIONS] if every else [""])


def test_interpreted(tests, request):
    pytest.importorskip("triton", reason="triton is not installed")
    file = Path(__file__).with_name("interpreted_parity.py")
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider"]
    command += ["-k", tests, "--override-ini", "addopts=--import-mode=importlib"]
    command += ["--all"] if request.config.getoption("--all") else []
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CI": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
