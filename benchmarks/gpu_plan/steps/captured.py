"""The model's forward captured in a graph, dense and ragged, and the gaps between the graph's kernels."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from ... import calls
from ..device import Device, busy, gaps
from ..models import batch_at, mask_at, models_at, ours, predicted_us
from ..results import Results

LOADS = ("8x128", "1x128", "128x128", "32x512", "ragged-16x128")
REPLAYS = 5  # that are profiled


def run(device: Device, results: Results) -> None:
    results.skip("programmatic dependent launch", "asks for PTX of sm_90, ours is of sm_80")
    for load in LOADS:
        with results.trying(load), torch.no_grad():
            _race(device, results, load)


def _race(device: Device, results: Results, load: str) -> None:
    steps = models_at(device, load)
    mask = mask_at(device, load)
    truth = steps["sdpa"]()["out"] * mask
    contenders: dict[str, Callable[[], object]] = {}
    with device.plain():
        for name, step in steps.items():
            calls.compare(f"{load}: {name}", step()["out"] * mask, truth)
            contenders[name] = _plainly(device, step)
            with results.trying(f"{load}: {name}, captured"):
                replay, out = device.graph(step)
                calls.compare(f"{load}: {name}, captured", out["out"] * mask, truth)
                contenders[f"{name}, captured"] = replay
    _own_graphs(device, results, load, truth, mask, contenders)
    tokens = sum(device.sizes.loads[load])
    for name, found in device.race(contenders, 1).items():
        results.add(
            "Forwards",
            load=load,
            model=name,
            **found,
            tokens_per_s=tokens / found["median_us"] * 1e6,
            predicted_us=predicted_us(device, load, False),
        )
    for name, call in contenders.items():
        with results.trying(f"{load}: {name}, profiled"):
            _gaps(device, results, load, name, call)


def _plainly(device: Device, step: Callable[[], object]) -> Callable[[], object]:
    def call():
        with device.plain():
            return step()

    return call


def _own_graphs(
    device: Device,
    results: Results,
    load: str,
    truth: Tensor,
    mask: Tensor | float,
    contenders: dict,
) -> None:
    """bertfast's own capture, where this version has it."""
    model, lengths = ours(device), device.sizes.loads[load]
    if not hasattr(model, "capture"):
        results.skip("bertfast.graphs", "not in this version")
        return
    with results.trying(f"{load}: bertfast.graphs"):
        model.capture([(len(lengths), max(lengths))])
        step = calls.step_of(model, batch_at(device, load), None)
        calls.compare(f"{load}: bertfast.graphs", step()["out"] * mask, truth)
        contenders["bertfast.graphs"] = step


def _gaps(device: Device, results: Results, load: str, name: str, call: Callable) -> None:
    def several() -> None:
        for _ in range(REPLAYS):
            call()

    kernels = device.kernels(several)
    between = gaps(kernels)
    results.add(
        "Gaps between kernels",
        load=load,
        model=name,
        kernels=len(kernels) / REPLAYS,
        gpu_busy_us=round(busy(kernels) / REPLAYS, 1),
        gap_median_us=round(median(between), 2) if between else None,
        gaps_us=round(sum(between) / REPLAYS, 1),
    )
