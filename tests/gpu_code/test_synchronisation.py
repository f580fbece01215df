"""Every barrier and wait of the shipped Triton kernels, removed in turn: reported, or listed as redundant.

A removal that nothing reports is redundant only if the run would need it: the cases here make every loop of a kernel
run more than once. Removed together, the redundant ones still bring no fault.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import harness
from bertfast import dispatch
from gpu_code import mutate
from gpu_code.triton_driver import emulated
from harness import Case

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
MIXED = Case("sync-mixed", (400, 240), 64, 64, mixed=True)  # LN beside a small product
RUNS = [
    *CASES.items(),
    ("attention", SHORT),
    ("linear_layernorm", replace(MIXED, p=0.1)),
    ("gelu_layernorm", MIXED),
]

_TWIN = (
    "at the head of a pipelined loop Triton waits for what the prologue, or the end of the iteration before, "
    "has waited for with a barrier; nothing is committed in between"
)
_DRAIN = "behind the loop Triton waits for all copies: the last iterations have waited for theirs"
_OWN = "a change of layout, or a step of a reduction, in which a warp reads back only what it wrote itself"
# Sites that Triton emits and no run needs, by kernel: at most so many, and why. Which address a lane exchanges does not
# depend on the data, so what no run misses here none will.
REDUNDANT: dict[str, tuple[int, str]] = {
    "_linear_fwd_kernel": (3, _TWIN),
    "_linear_bwd_kernel": (6, _TWIN + "; two loops"),
    "_attention_fwd_kernel": (2, _DRAIN),
    "_attention_bwd_keys_kernel": (2, _DRAIN),
    "_attention_bwd_queries_kernel": (2, _DRAIN),
    "_cross_entropy_spans_kernel": (3, _TWIN),
    "_cross_entropy_dlogits_kernel": (3, _TWIN),
    "_cross_entropy_gradients_kernel": (13, f"{_TWIN}; two loops: 6. {_OWN}: 7"),
    "_cross_entropy_list_kernel": (1, _OWN),
    "_cross_entropy_combine_kernel": (3, _OWN),
}


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
    inputs = harness.make_inputs(operation, case, torch.bfloat16)
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    with dispatch.use_backend("triton"):
        out = harness.public(operation)(**{**inputs, **leaves})
        gradient = harness.make_gradient(case, out)
        torch.autograd.grad(out, list(leaves.values()), gradient, materialize_grads=True)
