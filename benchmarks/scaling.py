"""`python -m benchmarks.scaling`: time and memory of a forward against its tokens, and what a process has first.

Texts of 128 tokens (the sizes below that: one text), one thread and two, a process each. Writes build/scaling.json and
build/scaling.png: microseconds a token should be a level line beyond the smallest batches, memory should grow by the
rows that go in and out alone.
"""

from __future__ import annotations

import argparse
import json
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from . import models
from .memory import measure_call, status
from .peers.machine import describe

TEXT = 128
TOKENS = [2**power for power in range(4, 17)]
FOLDER = Path(__file__).parents[1] / "build"


def measure(pipe, shape: str, threads: int, most: int) -> None:
    """In a process of its own: sends what it found."""
    torch.set_num_threads(threads)
    model = models.model(shape, pooler=False)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    found = {"weights_mib": weights, "loaded_mib": status("VmRSS"), "sizes": {}}
    with torch.no_grad():
        batch = models.batch_of([TEXT] * 8)
        found["first_calls_ms"] = [1e3 * _seconds(model, batch) for _ in range(10)]
        for tokens in (size for size in TOKENS if size <= most):
            batch = models.batch_of([min(TEXT, tokens)] * max(1, tokens // TEXT))
            rounds = max(3, min(50, 2**14 // tokens))
            _, above = measure_call(lambda batch=batch: model(**batch))
            seconds = median(_seconds(model, batch) for _ in range(rounds))
            found["sizes"][tokens] = {"ms": 1e3 * seconds, "above_mib": above}
    pipe.send(found)


def _seconds(model, batch) -> float:
    start = time.perf_counter()
    model(**batch)
    return time.perf_counter() - start


def in_own_process(*arguments) -> dict:
    context = get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(send, *arguments))
    process.start()
    send.close()  # so that a child that fails ends the wait
    found = receive.recv()
    process.join()
    return found


def draw(results: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for name, found in results["runs"].items():
        sizes = found["sizes"]
        tokens = [int(size) for size in sizes]
        times = [size["ms"] for size in sizes.values()]
        panels[0].plot(tokens, times, "o-", markersize=3, label=name)
        each = [1e3 * ms / count for ms, count in zip(times, tokens, strict=True)]
        panels[1].plot(tokens, each, "o-", markersize=3)
        above = [size["above_mib"] for size in sizes.values()]
        panels[2].plot(tokens, above, "o-", markersize=3)
    titles = ("milliseconds a forward", "microseconds a token", "MiB above the model at the peak")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="tokens", xscale="log", ylim=(0, None))
    panels[0].set(yscale="log", ylim=None)
    panels[0].legend(fontsize=8)
    new = file.with_suffix(".new")
    figure.savefig(new, format="png", dpi=110)
    pyplot.close(figure)
    new.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=models.SHAPES, default=[*models.SHAPES])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--most", type=int, default=TOKENS[-1], help="tokens of the largest batch")
    arguments = parser.parse_args()
    results = {"machine": describe(max(arguments.threads)), "runs": {}}
    FOLDER.mkdir(exist_ok=True)
    for shape in arguments.models:
        for threads in arguments.threads:
            found = in_own_process(shape, threads, arguments.most)
            results["runs"][f"{shape}, threads: {threads}"] = found
            first = found["first_calls_ms"]
            print(
                f"{shape}, threads: {threads}: weights {found['weights_mib']:.0f} MiB, loaded "
                f"{found['loaded_mib']:.0f} MiB, first call {first[0] / median(first[1:]):.2f} x the later ones"
            )
            for tokens, size in found["sizes"].items():
                each = 1e3 * size["ms"] / tokens
                print(
                    f"  {tokens:6} tokens {size['ms']:10.2f} ms {each:8.1f} us a token "
                    f"{size['above_mib']:8.1f} MiB above"
                )
    (FOLDER / "scaling.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    draw(results, FOLDER / "scaling.png")


if __name__ == "__main__":
    main()
