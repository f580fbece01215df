"""The embedding by every provider, and what GELU takes: alone, and the kernels of the operation that has it fused."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import harness

from ... import calls, gpu
from ...peers.gpu import peers
from ..device import Device, short
from ..results import Results
from .attention import race

LOADS = ("32x512", "8x128")


def run(device: Device, results: Results) -> None:
    for load in LOADS:
        for backward in (False, True):
            with results.trying(f"embedding, {load}"):
                race(device, results, "embedding", load, backward)
    for load in LOADS:
        with results.trying(f"gelu, {load}"):
            _gelu(device, results, load)


def _gelu(device: Device, results: Results, load: str) -> None:
    case = device.sizes.case("linear_gelu", load)
    x = torch.randn(case.tokens, case.outer, dtype=torch.bfloat16, device=device.tensors)
    found = device.race({"F.gelu": lambda: F.gelu(x)}, gpu.QUEUED)["F.gelu"]
    moved = gpu.Cost(0, 2 * x.numel() * x.element_size())
    results.add("GELU alone", load=load, **found, predicted_us=device.predicted_us(moved))
    inputs = harness.make_inputs("linear_gelu", case, torch.bfloat16, device.tensors)
    providers = calls.backends("linear_gelu", case, inputs, True, {})
    providers["torch"] = peers("linear_gelu", case, inputs, {}, device.compile)["eager"]
    for name, peer in providers.items():
        with results.trying(f"gelu, {load}: {name}"):
            for kernel in device.kernels(calls.call_of(case, peer, True)):
                results.add(
                    "Kernels of linear_gelu, forward + backward",
                    load=load,
                    provider=name,
                    kernel=short(kernel.name),
                    timed_us=round(kernel.end - kernel.start, 2),
                )
