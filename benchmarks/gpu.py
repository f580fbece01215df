"""Races on a GPU: CUDA events, the cache flushed before every sample, contenders in turn; what to predict without one.

An operation is timed as the GPU's own work: its launches are queued while the cache is flushed, for a millisecond or
more. A model is timed as its user waits for it, with all that the CPU does in between.

The roofline of a card is its peak of the dtype and its memory's bandwidth, from the vendor's data sheet (dense, without
sparsity; at the boost clock). A prediction is the larger of flops / peak and bytes / bandwidth over the launches of the
fused design: no kernel can be faster, none was timed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from harness import Case
from harness.costs import Cost

from .plot import draw

RAGGED_SHARE = 0.6  # of the padded batch's cells that hold a token
LOADS = {
    "1x128": (128,),
    "8x128": (128,) * 8,
    "32x128": (128,) * 32,
    "128x128": (128,) * 128,
    "32x512": (512,) * 32,
    # 32 lengths evenly between 104 and 510: 60 % of 32 x 512
    "ragged-32x512": tuple(round(512 * (RAGGED_SHARE + (i - 15.5) / 39)) for i in range(32)),
}
HIDDEN, HEADS, INNER, VOCABULARY = 768, 12, 3072, 30522
ROUNDS = 20
# Written after every race, so that a run that is stopped leaves its figures.
TIMED = Path("build/gpu-timed.json")
L2_BYTES = 256 << 20  # larger than any card's cache
QUEUED = 32  # flushes before a sample of an operation: a millisecond or more on any card


class Roof(NamedTuple):
    """Peak of 16-bit products with fp32 sums, operations a second; memory, bytes a second; instructions of a warp that
    all multiprocessors issue in a second.
    """

    flops: float
    bytes: float
    issued: float


def _issued(multiprocessors: int, boost: float) -> float:
    """One instruction a cycle of each of the four schedulers; boost in Hz."""
    return 4 * multiprocessors * boost


ROOFS = {
    "A100 SXM 80GB": Roof(312e12, 2039e9, _issued(108, 1.41e9)),
    "H100 SXM": Roof(989e12, 3350e9, _issued(132, 1.83e9)),
    "H200": Roof(989e12, 4800e9, _issued(132, 1.83e9)),
    "L40S": Roof(362e12, 864e9, _issued(142, 2.52e9)),
    "RTX 4090": Roof(165e12, 1008e9, _issued(128, 2.52e9)),
    "B200": Roof(2250e12, 8000e9, _issued(148, 1.86e9)),
}


def case(operation: str, load: str) -> Case:
    """BERT-base's shape of an operation."""
    inner, outer = {
        "embedding": (HIDDEN, VOCABULARY),
        "linear_gelu": (HIDDEN, INNER),
        "linear_layernorm": (INNER, HIDDEN),
        "masked_cross_entropy": (HIDDEN, VOCABULARY),
    }.get(operation, (HIDDEN, HIDDEN))
    return Case(load, LOADS[load], inner, outer, HEADS, eps=1e-12)


def predicted(cost: Cost, roof: Roof) -> float:
    """Seconds that the card needs at least."""
    return max(cost.flops / roof.flops, cost.bytes / roof.bytes)


def roof_of(name: str) -> Roof | None:
    """The roofline of a card by what CUDA calls it, or None."""
    words = name.replace("-", " ").upper()
    return next((roof for known, roof in ROOFS.items() if known.split()[0] in words.split()), None)


@dataclass
class GpuRace:
    """The samples of the contenders of one group; a stand-in for race.Race where a GPU computes."""

    group: str
    tokens: int
    cost: Cost
    baseline: str
    flushes: int = 1
    samples: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self, contenders: dict[str, Callable[[], object]]) -> None:
        self.samples = {name: [] for name in contenders}
        flush = torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda")
        for call in contenders.values():  # compiles, measures backends, allocates
            for _ in range(3):
                call()
        for _ in range(ROUNDS):
            for name, call in contenders.items():
                self.samples[name].append(_seconds(call, flush, self.flushes))

    def figures(self, name: str) -> dict:
        seconds = median(self.samples[name])
        pairs = zip(self.samples[self.baseline], self.samples[name], strict=True)
        roof = roof_of(torch.cuda.get_device_name())
        return {
            "device": torch.cuda.get_device_name(),
            "real_tokens": self.tokens,
            "real_tokens_per_second": round(self.tokens / seconds),
            f"speed_over_{self.baseline}": round(median(a / b for a, b in pairs), 3),
            "tflops": round(self.cost.flops / seconds / 1e12, 2),
            "gbytes_per_second": round(self.cost.bytes / seconds / 1e9, 1),
            "share_of_roofline": roof and round(predicted(self.cost, roof) / seconds, 3),
        }

    def row(self) -> dict:
        """The race as a row of the table: medians, and the roofline's time beside them where the card's is known."""
        operation, load, direction = self.group.split(" ", 2)
        times = {name: round(median(found) * 1e6, 2) for name, found in self.samples.items()}
        roof = roof_of(torch.cuda.get_device_name())
        if roof is not None:
            times["roofline"] = round(predicted(self.cost, roof) * 1e6, 2)
        return {
            "operation": operation,
            "load": load,
            "direction": direction,
            "gflops": round(self.cost.flops / 1e9, 3),
            "mbytes": round(self.cost.bytes / 1e6, 3),
            "microseconds": times,
        }


def _seconds(call: Callable[[], object], flush: torch.Tensor, flushes: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(flushes):
        flush.zero_()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def timed(races: Iterable[object]) -> tuple[str, list[dict]]:
    """(what was timed where, a row for each race on a GPU)."""
    what = f"timed on {torch.cuda.get_device_name()}, torch {torch.__version__}, bf16"
    return what, [race.row() for race in races if isinstance(race, GpuRace)]


def write_rows(file: Path, what: str, rows: list[dict]) -> None:
    """The rows as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"what": what, "rows": rows}, indent=1) + "\n")
    new.replace(file)


def write_table(file: Path, what: str, rows: list[dict]) -> list[Path]:
    """The rows as JSON, and drawn beside it where matplotlib is. Returns what was written."""
    write_rows(file, what, rows)
    if importlib.util.find_spec("matplotlib") is None:
        return [file]
    image = file.with_suffix(".png")
    draw(what, rows, image)
    return [file, image]
