"""transformers' sdpa under torch.compile, as it is and with reduced overhead, beside bertfast: forward, training step.

Outputs are compared first, and of those that are not compiled the gradients, with dropout off. A training step is
forward, backward and torch's fused capturable AdamW, dropout on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ... import calls
from ..device import Device
from ..models import batch_at, direction_at, mask_at, ours, predicted_us, theirs
from ..results import Results

LOADS = ("8x128", "ragged-32x512")
MODES = {"compile": "default", "compile, reduced overhead": "reduce-overhead"}


def run(device: Device, results: Results) -> None:
    for race in (_forward, _training):
        for load in LOADS:
            with results.trying(f"{load}, {race.__name__.strip('_')}"):
                race(device, results, load)


def _models(device: Device) -> dict[str, Callable]:
    found = {"bertfast": ours(device), "sdpa": theirs(device)}
    for name, mode in MODES.items():
        found[name] = device.compile(theirs(device), mode=mode)
    return found


def _forward(device: Device, results: Results, load: str) -> None:
    torch._dynamo.reset()  # or the limit of recompiled variants makes later ones eager
    batch, mask = batch_at(device, load), mask_at(device, load)
    steps = {name: calls.step_of(model, batch, None) for name, model in _models(device).items()}
    truth = steps["sdpa"]()
    contenders = {}
    for name, step in steps.items():
        with results.trying(f"{load}: {name}"):
            calls.compare_models(f"{load}: {name}", step(), truth, mask)
            contenders[name] = step
    _add(device, results, load, "forward", contenders)


def _training(device: Device, results: Results, load: str) -> None:
    torch._dynamo.reset()
    batch, models = batch_at(device, load), _models(device)
    direction = direction_at(device, load)
    plain = {name: calls.step_of(models[name], batch, direction)() for name in ("bertfast", "sdpa")}
    calls.compare_models(load, plain["bertfast"], plain["sdpa"], mask_at(device, load))
    del plain
    contenders = {}
    for name, model in models.items():
        with results.trying(f"{load}: {name}, training"):
            step = _step(model.train(), batch, direction)
            step()
            contenders[name] = step
    _add(device, results, load, "training step", contenders)


def _step(model, batch: dict, direction: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True, capturable=True)

    def call() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        model(**batch).last_hidden_state.backward(direction)
        optimizer.step()
        optimizer.zero_grad()

    return call


def _add(device: Device, results: Results, load: str, what: str, contenders: dict) -> None:
    found = device.race(contenders, 1)
    tokens = sum(device.sizes.loads[load])
    bertfast_us = found.get("bertfast", {}).get("median_us")
    for name, row in found.items():
        results.add(
            "Models",
            load=load,
            what=what,
            model=name,
            **row,
            tokens_per_s=tokens / row["median_us"] * 1e6,
            bertfast_is_faster_x=bertfast_us and round(row["median_us"] / bertfast_us, 3),
            predicted_us=predicted_us(device, load, what != "forward"),
        )
