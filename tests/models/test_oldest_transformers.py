"""The oldest transformers that serves: its classes and ours agree too, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv" / "transformers-oldest"
# Numbers, heads, losses and ways; the rest asks tools that this release is too old for, or waits for compilers.
FILES = (
    *("test_model.py", "test_heads.py", "test_heads_losses.py", "test_ways.py"),
    "test_never_silently.py",
)


def test_oldest_transformers(request):
    if not FOLDER.is_dir():
        reason = "make test installs transformers 4.57 beside the environment's"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1"}
    files = [str(HERE / name) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    options = ["-k", "not compile", "--seed", str(request.config.getoption("seed"))]
    run = subprocess.run(
        command + options, capture_output=True, text=True, env=environment, cwd=HERE.parents[1]
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
