"""python -m benchmarks.gpu_plan: what `make gpu` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import plan

FOLDER = Path("build/gpu")
NO_GPU = """make gpu: torch sees no CUDA GPU here, so there is nothing to time. The GPU backends were executed,
interpreted and gated by `make test` and `make gates`; none was timed. --stand-in walks the plan on a CPU."""


def main(arguments: list[str] | None = None) -> int:
    names = [step.name for step in plan.STEPS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_plan", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=names, metavar="STEP", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--minutes", type=float, help="of all steps together, each its share")
    parser.add_argument("--stand-in", action="store_true", help="no GPU: tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder (default {FOLDER})")
    asked = parser.parse_args(arguments)
    if not asked.stand_in and not _sees_gpu():
        print(NO_GPU)
        return 0
    steps = [step for step in plan.STEPS if not asked.only or step.name in asked.only]

    def command(step: plan.Step, file: Path, seconds: float) -> list[str]:
        stand_in = ["--stand-in"] if asked.stand_in else []
        return [sys.executable, "-m", "benchmarks.gpu_plan.step", step.name, str(file), *stand_in]

    found = plan.run(steps, asked.out, command, asked.minutes)
    print(f"Report: {asked.out / 'report.md'}")
    return int(any(step["outcome"] != plan.DONE for step in found))


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
