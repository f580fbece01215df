"""The name of the processor, which every published figure carries."""

from __future__ import annotations

import platform


def processor() -> str:
    """As it calls itself."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
