"""Options and the closing table of the benchmarks."""

from __future__ import annotations

import platform
from statistics import median

import pytest
import torch

from benchmarks.race import CLOCK, RACES

MEMORY: list[tuple[str, float, float]] = []  # contender, steady MiB, MiB above it


def pytest_addoption(parser):
    parser.addoption(
        "--threads", type=int, default=2, help="threads of every contender (default 2)"
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    torch.set_num_threads(config.getoption("threads"))
    if hasattr(config.option, "benchmark_columns"):
        config.option.benchmark_columns = ["min", "median", "max", "rounds"]


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK.read))


@pytest.fixture
def record_memory():
    """Adds a line to the closing table of memory."""
    return lambda *row: MEMORY.append(row)


def pytest_report_header():
    return (
        f"benchmarks: {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    if MEMORY:
        terminalreporter.section("peak memory of one forward, base ragged-32")
    for name, steady, above in MEMORY:
        write(
            f"  {name:<26}{steady:8.0f} MiB steady + {above:6.0f} MiB at the peak = {steady + above:6.0f} MiB"
        )
    if not RACES:
        return
    terminalreporter.section(f"real tokens only, {processor()}, {torch.get_num_threads()} threads")
    for race in RACES.values():
        peak = f"{race.peak / 1e9:.0f} GFLOP/s"
        write(f"{race.group}: {race.tokens} real tokens, FMA peak {peak}")
        for name, samples in race.samples.items():
            figures = race.figures(name)
            write(
                f"  {name:<26}{median(samples) * 1e3:10.2f} ms{figures['real_tokens_per_second']:11,} tokens/s"
                f"{figures[f'speed_over_{race.baseline}']:8.2f}x {race.baseline}"
                f"{figures['share_of_fma_peak'] or 0:7.0%} of peak"
            )
        for name, reason in race.skipped.items():
            write(f"  {name:<26}skipped: {reason}")


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
