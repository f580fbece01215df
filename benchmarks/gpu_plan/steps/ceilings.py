"""Builds for this card; what it copies and multiplies at best; which kernels torch takes for attention and products."""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

import harness

from ... import calls, gpu
from ...peers.gpu import peers
from ..device import ROOT, Device, short
from ..results import Results

BUILD_SECONDS = 120
SDPA_LOADS = ("8x128", "32x512", "ragged-32x512")


def run(device: Device, results: Results) -> None:
    with results.trying("build"):
        _build(device, results)
    with results.trying("copies"):
        _copies(device, results)
    with results.trying("products"):
        _products(device, results)
    for load in SDPA_LOADS:
        with results.trying(f"sdpa, {load}"):
            _sdpa(device, results, load)


def _build(device: Device, results: Results) -> None:
    """The kernels for this card alone, which takes a part of the minutes of all."""
    major, minor = device.cuda.get_device_capability()
    named = {"BERTFAST_BUILD": "cuda", "BERTFAST_CUDA_ARCHS": f"{major}{minor}"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = device.tool(
        command,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        cwd=ROOT,
        env={**named, **os.environ},
    )
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    results.add("Build", **named, exit_code=done.returncode, said=" ".join(last))
    assert done.returncode == 0, f"the build ended with {done.returncode}"


def _copies(device: Device, results: Results) -> None:
    """Each byte is read once and written once."""
    source = torch.ones(device.sizes.copy, dtype=torch.uint8, device=device.tensors)
    target = torch.empty_like(source)
    found = device.race({"copy": lambda: target.copy_(source)}, 1)["copy"]
    assert torch.equal(source, target)
    rate = 2 * source.numel() / found["median_us"] * 1e6
    data_sheet = {"predicted_bytes_per_s": device.roof.bytes if device.roof else None}
    results.add("Copies", bytes=source.numel(), **found, bytes_per_s=rate, **data_sheet)


def _products(device: Device, results: Results) -> None:
    """torch.matmul of squares in bf16, which is cuBLAS."""
    for side in (device.sizes.square // 2, device.sizes.square):
        a, b = (
            torch.randn(side, side, dtype=torch.bfloat16, device=device.tensors) for _ in range(2)
        )
        found = device.race({"matmul": lambda a=a, b=b: a @ b}, gpu.QUEUED)["matmul"]
        rate = 2 * side**3 / found["median_us"] * 1e6
        kernel = ", ".join(sorted({short(k.name) for k in device.kernels(lambda a=a, b=b: a @ b)}))
        data_sheet = {"predicted_flops_per_s": device.roof.flops if device.roof else None}
        results.add("Products", side=side, **found, flops_per_s=rate, **data_sheet, kernels=kernel)
    for tokens in device.sizes.tokens:
        x, weight = _operands(device, tokens)
        kernels = device.kernels(lambda x=x, weight=weight: F.linear(x, weight))
        for kernel in kernels:
            results.add("Kernels behind F.linear", tokens=tokens, kernel=short(kernel.name))


def _operands(device: Device, tokens: int) -> tuple[Tensor, Tensor]:
    """Of the first product of the feed-forward network."""
    sizes = device.sizes
    options = {"dtype": torch.bfloat16, "device": device.tensors}
    x = torch.randn(tokens, sizes.hidden, **options)
    return x, torch.randn(sizes.inner, sizes.hidden, **options)


def _sdpa(device: Device, results: Results, load: str) -> None:
    case = device.sizes.case("attention", load)
    inputs = harness.make_inputs("attention", case, torch.bfloat16, device.tensors)
    sdpa = peers("attention", case, inputs, {}, device.compile)["sdpa"]
    for backward in (False, True):
        for kernel in device.kernels(calls.call_of(case, sdpa, backward)):
            results.add(
                "Kernels behind sdpa",
                load=load,
                direction="forward + backward" if backward else "forward",
                kernel=short(kernel.name),
                timed_us=round(kernel.end - kernel.start, 2),
            )
