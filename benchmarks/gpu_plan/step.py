"""python -m benchmarks.gpu_plan.step NAME FILE [--stand-in]: one step, in this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # the package harness

from . import stand_in
from .device import Device
from .results import IN_PART, Results


def run(name: str, file: Path, device: Device) -> int:
    """Exit code: 0, or IN_PART where something failed that did not end the step."""
    results = Results(file, device.header())
    importlib.import_module(f".steps.{name}", __package__).run(device, results)
    results.header["clocks at the end"] = device.clocks()
    results.write()
    return IN_PART if results.failures else 0


if __name__ == "__main__":
    device = stand_in.device() if "--stand-in" in sys.argv[3:] else Device()
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), device))
