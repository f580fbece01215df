"""Every barrier and wait of the shipped Triton kernels, removed in turn: reported, or listed as redundant.

A removal that nothing reports is redundant only if the run would need it: the cases here make every loop of a kernel
run more than once. Removed together, the redundant ones still bring no fault.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from bertfast import dispatch, testing
from bertfast.testing import Case
from gpu_code import mutate
from gpu_code.triton_driver import emulated

CASES = {
    "embedding": Case("sync", (40, 25), 64, 50, p=0.1),
    "qkv_projection": Case("sync", (400, 240), 768, 128, heads=2),
    "attention": Case("sync", (320, 3), outer=64, heads=2, p=0.1),
    "linear_gelu": Case("sync", (400, 240), 640, 640),
    "linear_layernorm": Case("sync", (400, 240), 640, 64, p=0.1),
    "gelu_layernorm": Case("sync", (400, 240), 640, 64),
    "masked_cross_entropy": Case("sync", (300, 5), 640, 1300),
}
SHORT = Case("sync-short", (100, 3), outer=64, heads=2, p=0.1)  # attention's backward in one launch
RUNS = [*CASES.items(), ("attention", SHORT)]

# Sites that Triton emits and no run needs, by kernel: at most so many, and why.
REDUNDANT: dict[str, tuple[int, str]] = {}


@pytest.mark.parametrize(("operation", "case"), RUNS, ids=[f"{o}-{c.name}" for o, c in RUNS])
def test_every_barrier_and_wait(operation, case):
    with emulated(keep=True) as device:
        _forward_and_backward(operation, case)
        first = {launch.name: launch for launch in reversed(device.launches)}
        for name, launch in first.items():
            redundant = mutate.survey(launch.asm["ptx"], launch.again).redundant
            allowed, _ = REDUNDANT.get(name, (0, ""))
            listed = "\n".join(f"line {site.line}: {site.text}" for site in redundant)
            assert len(redundant) <= allowed, f"{name}: nobody misses\n{listed}"
    assert any(mutate.sites(launch.asm["ptx"]) for launch in first.values())


def _forward_and_backward(operation: str, case: Case) -> None:
    inputs = testing.make_inputs(operation, case, torch.bfloat16)
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    with dispatch.use_backend("triton"):
        out = testing.public(operation)(**{**inputs, **leaves})
        gradient = testing.make_gradient(case, out)
        torch.autograd.grad(out, list(leaves.values()), gradient, materialize_grads=True)
