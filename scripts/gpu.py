"""What `make gpu` runs: on a CUDA GPU, parity of the device backends, compute-sanitizer, benchmarks; one report file.

Without a GPU it says so and ends well. The report is build/gpu-report.md, written whole after every step. At most ten
minutes: each step has its share and is stopped at its end, which the report then says.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from bertfast import extension

REPORT = Path("build/gpu-report.md")
FIGURES = Path("build/gpu-benchmarks.json")
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


class Step(NamedTuple):
    """One command, and the seconds that it may take."""

    title: str
    command: list[str]
    seconds: int


def steps() -> list[Step]:
    parity = [*PYTEST, "tests/ops", "--device", "cuda"]
    processes = str(min(8, os.cpu_count() or 1))  # Triton's compiler is what takes the time
    command = [*parity, "-n", processes, "--dist", "worksteal"]
    found = [Step("Parity of the device backends", command, 240)]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer:
        for tool in ("memcheck", "racecheck"):
            command = [
                sanitizer,
                "--tool",
                tool,
                "--error-exitcode",
                "9",
                *parity,
                "-k",
                "odd and bf16",
            ]
            found.append(Step(f"compute-sanitizer, {tool}", command, 60))
    quick = "-8x128- or [8x128- or -1x128- or [1x128- or ragged"
    benchmarks = [*PYTEST, "benchmarks/test_gpu.py", "--benchmark-only", "-k", quick]
    found.append(Step("Benchmarks", [*benchmarks, f"--benchmark-json={FIGURES}"], 220))
    return found


def run(step: Step) -> tuple[bool, str]:
    """(whether it passed, its section of the report)."""
    start = time.monotonic()
    try:
        done = subprocess.run(step.command, capture_output=True, text=True, timeout=step.seconds)
        outcome, output = f"exit code {done.returncode}", done.stdout + done.stderr
        passed = done.returncode == 0
    except subprocess.TimeoutExpired as late:
        outcome, passed = f"stopped after {step.seconds} s", False
        output = b"".join(filter(None, (late.stdout, late.stderr))).decode(errors="replace")
    spent = time.monotonic() - start
    tail = "\n".join(output.splitlines()[-120:])
    command = " ".join(step.command)
    return passed, f"## {step.title}: {outcome}, {spent:.0f} s\n\n`{command}`\n\n```\n{tail}\n```\n"


def header() -> str:
    """The machine and what runs on it."""
    index = torch.cuda.current_device()
    major, minor = torch.cuda.get_device_capability(index)
    today = datetime.date.today().isoformat()
    info = subprocess.run(
        [sys.executable, "-m", "bertfast", "info"], capture_output=True, text=True
    )
    return (
        f"# bertfast on {torch.cuda.get_device_name(index)} (sm_{major}{minor}), {today}\n\n"
        f"torch {torch.__version__}, CUDA {torch.version.cuda}\n\n```\n{info.stdout}```\n"
    )


def main() -> int:
    if not torch.cuda.is_available():
        print(
            "make gpu: torch sees no CUDA GPU here, so there is nothing to check. The GPU backends were"
        )
        print("executed, interpreted and gated by `make test` and `make gates`; none was timed.")
        return 0
    if not shutil.which("compute-sanitizer"):
        print("compute-sanitizer is not on PATH: its steps are left out")
    sections, good = [header()], extension.cuda is not None
    if not good:
        print(extension.CUDA_REASON)
        sections.append(f"{extension.CUDA_REASON}: the CUDA backend was left out\n")
    REPORT.parent.mkdir(exist_ok=True)
    for step in steps():
        print(f"{step.title} (at most {step.seconds} s) ...", flush=True)
        passed, section = run(step)
        good &= passed
        sections.append(section)
        new = REPORT.with_suffix(".new")
        new.write_text("\n".join(sections))
        new.replace(REPORT)
        print(section.splitlines()[0].removeprefix("## "))
    print(f"Report: {REPORT}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
