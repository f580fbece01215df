"""Parity of the backends of a GPU, and compute-sanitizer on cases of odd sizes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from ..device import ROOT, Device
from ..results import Results

PARITY = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops"]
ON_GPU = ["--device", "cuda"]
# Under compute-sanitizer all takes many times as long: one case of each operation, forward and backward.
CHOSEN = ["-k", "odd and bf16 and (cuda or triton) and not reference and not eager"]
SANITIZER = "compute-sanitizer"
FOUND = 9  # its exit code for an error
SECONDS = {"parity": 130, "memcheck": 50, "racecheck": 50}


def run(device: Device, results: Results) -> None:
    for name, seconds in SECONDS.items():
        with results.trying(name):
            _check(device, results, name, seconds)


def command_of(name: str) -> list[str]:
    """The command of a check."""
    if name == "parity":
        processes = str(min(8, os.cpu_count() or 1))  # Triton's compiler is what takes the time
        return [*PARITY, *ON_GPU, "-n", processes, "--dist", "worksteal"]
    sanitizer = [SANITIZER, "--tool", name, "--error-exitcode", str(FOUND)]
    return [*sanitizer, *PARITY, *ON_GPU, *CHOSEN]


def _check(device: Device, results: Results, name: str, seconds: int) -> None:
    command, start = command_of(name), time.monotonic()
    try:
        done = device.tool(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    except FileNotFoundError:
        return results.skip(name, f"{command[0]} is not on PATH")
    except subprocess.TimeoutExpired:
        outcome, said = f"stopped after {seconds} s", ""
    else:
        outcome, said = f"exit code {done.returncode}", done.stdout + done.stderr
    print(said)
    last = said.strip().splitlines()[-1:]
    spent = round(time.monotonic() - start)
    results.add("Checks", check=name, outcome=outcome, seconds=spent, said=" ".join(last))
    assert outcome == "exit code 0", outcome
