"""Both of torch's ways to allow tf32 in products of float32 reach the backends of a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

ASK = "import torch; from bertfast import extension; {set}; print(extension.allows_tf32())"
OLD = "torch.backends.cuda.matmul.allow_tf32 = {}"
NEW = "torch.backends.cuda.matmul.fp32_precision = '{}'"


@pytest.mark.parametrize(
    ("way", "allowed"),
    [
        ("pass", False),
        (OLD.format(True), True),
        (OLD.format(False), False),
        (NEW.format("tf32"), True),
        (NEW.format("ieee"), False),
        ("torch.set_float32_matmul_precision('high')", True),
    ],
)
def test_tf32_is_allowed(way, allowed):
    """In processes of their own: torch refuses to read one setting after the other was made."""
    if "fp32_precision" in way and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip(f"torch {torch.__version__} has allow_tf32 alone")
    command = [sys.executable, "-c", ASK.format(set=way)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(allowed)
