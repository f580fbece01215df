"""Attention by every provider, forward and with its backward, dense and ragged; real tokens are counted."""

from __future__ import annotations

import torch

import harness
from harness import costs

from ... import calls, gpu
from ...peers.gpu import peers
from ..device import Device
from ..results import Results

LOADS = ("32x512", "ragged-32x512", "8x128", "128x128")


def run(device: Device, results: Results) -> None:
    for load in LOADS:
        for backward in (False, True):
            with results.trying(f"{load}, {'backward' if backward else 'forward'}"):
                race(device, results, "attention", load, backward)


def race(device: Device, results: Results, operation: str, load: str, backward: bool) -> None:
    """Rows of all that computes the operation as plain torch does: a backend, sdpa, who else is installed."""
    direction = "forward + backward" if backward else "forward"
    case = device.sizes.case(operation, load)
    inputs = harness.make_inputs(operation, case, torch.bfloat16, device.tensors)
    cost = costs.cost(operation, "forward", inputs, backward)
    if backward:
        cost += costs.cost(operation, "backward", inputs)
    skipped: dict[str, str] = {}
    providers = calls.backends(operation, case, inputs, backward, skipped)
    providers |= peers(operation, case, inputs, skipped, device.compile)
    del providers["compile"]  # of one operation, benchmarks/test_gpu.py has it
    for name, reason in skipped.items():
        results.skip(f"{operation}, {name}", reason)
    truth = calls.tokens_of(calls.call_of(case, providers["eager"], backward)(), providers["eager"])
    contenders = {}
    for name, peer in providers.items():
        label = f"{operation} {load} {direction}: {name}"
        with results.trying(label):
            call = calls.call_of(case, peer, backward)
            for what, found in calls.tokens_of(call(), peer).items():
                calls.compare(f"{label}: {what}", found, truth[what])
            contenders[name] = call
    for name, found in device.race(contenders, gpu.QUEUED).items():
        results.add(
            operation.capitalize(),
            load=load,
            direction=direction,
            provider=name,
            **found,
            tokens=case.tokens,
            tokens_per_s=case.tokens / found["median_us"] * 1e6,
            flops_per_s=cost.flops / found["median_us"] * 1e6,
            bytes_per_s=cost.bytes / found["median_us"] * 1e6,
            predicted_us=device.predicted_us(cost),
        )
