"""Options and the closing table of the benchmarks."""

from __future__ import annotations

import sys
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the package harness

from benchmarks.gpu import TIMED, GpuRace, timed, write_table
from benchmarks.processor import processor
from benchmarks.race import CLOCK, RACES

MEMORY: list[
    tuple[str, str, float, float]
] = []  # what, contender, steady MiB, MiB above it at the peak


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
def in_own_process():
    """Runs measure(pipe, contender, threads) in a new process and makes its memory this test's row."""

    def run(benchmark, group, name, measure):
        pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
        if sys.platform != "linux":
            pytest.skip("reads /proc/self/status")
        context = get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(send, name, torch.get_num_threads()))
        process.start()
        send.close()  # so that a child that fails ends the wait
        steady, above = receive.recv()
        process.join()
        MEMORY.append((group, name, steady, above))
        benchmark.group = f"memory, {group}"
        benchmark.extra_info.update(steady_mib=round(steady), above_steady_mib=round(above))
        benchmark.pedantic(lambda: None, rounds=1)

    return run


def pytest_report_header():
    return (
        f"benchmarks: {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    if MEMORY:
        terminalreporter.section("peak resident memory, each contender in a process of its own")
    for group, name, steady, above in MEMORY:
        total = (
            f"{steady:7.0f} MiB steady + {above:5.0f} MiB at the peak = {steady + above:5.0f} MiB"
        )
        write(f"  {group:<30}{name:<17}{total}")
    if not RACES:
        return
    terminalreporter.section(f"real tokens only, {processor()}, {torch.get_num_threads()} threads")
    for race in RACES.values():
        if isinstance(race, GpuRace):
            _write_gpu_race(write, race)
            continue
        peaks = ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in race.peaks.items())
        write(f"{race.group}: {race.tokens} real tokens" + f", FMA peak of {peaks}" * bool(peaks))
        for name, samples in race.samples.items():
            figures = race.figures(name)
            share = ""
            if race.flops:
                share = f"{figures['share_of_fma_peak']:7.0%} of {figures['instruction_set']} peak"
            write(
                f"  {name:<26}{median(samples) * 1e3:10.2f} ms{figures['real_tokens_per_second']:11,} tokens/s"
                f"{figures[f'speed_over_{race.baseline}']:8.2f}x {race.baseline}{share}"
            )
        for name, reason in race.skipped.items():
            write(f"  {name:<26}skipped: {reason}")
    if any(isinstance(race, GpuRace) for race in RACES.values()):
        write(f"written: {', '.join(map(str, write_table(TIMED, *timed(RACES.values()))))}")


def _write_gpu_race(write, race: GpuRace) -> None:
    write(f"{race.group}: {race.tokens} real tokens, {torch.cuda.get_device_name()}")
    for name, samples in race.samples.items():
        figures = race.figures(name)
        write(
            f"  {name:<26}{median(samples) * 1e6:10.1f} us{figures['tflops']:9.1f} TFLOP/s"
            f"{figures['gbytes_per_second']:9.0f} GB/s"
            f"{figures[f'speed_over_{race.baseline}']:8.2f}x {race.baseline}"
            f", share of roofline {figures['share_of_roofline']}"
        )
    for name, reason in race.skipped.items():
        write(f"  {name:<26}skipped: {reason}")
