"""Every barrier and wait of the shipped CUDA kernels, removed in turn: each is reported, or listed with its reason.

What a removal breaks depends on the sizes: after the last depth of a product, say, the way out writes to memory that
one stage in four has just been read from. So a kernel runs on several sizes, and a site is redundant only if none of
them misses it.
"""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch
from bertfast.ops import encoder
from gpu_code import cuda_driver, mutate, nvcc
from gpu_code.backends import allowing_tf32
from harness import Case, layers

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
# By what shares kernels: (operation, case). 272 is an odd number of depths of every dtype: the last one lies where the
# way out of a product writes.
RUNS = {
    "embedding": [
        ("embedding", Case("sync", (140, 125), 64, 50, p=0.1)),
        ("embedding", Case("wide", (90, 60), 1100, 9, p=0.1)),
    ],
    "attention": [
        ("attention", Case("sync", lengths, outer=2 * size, heads=2, p=0.1))
        for size in (32, 64, 128)
        for lengths in ((320, 3), (100, 3))
    ],
    "products": [
        ("qkv_projection", Case("sync", (150, 240), 272, 128, heads=2)),
        ("linear_gelu", Case("sync", (272,), 272, 272)),
        ("linear_gelu", Case("sync", (30,), 272, 272)),
        ("linear_layernorm", Case("sync", (350, 340), 272, 64, p=0.1)),
        ("linear_layernorm", Case("wide", (30, 22), 33, 1100, p=0.1)),
        ("gelu_layernorm", Case("sync", (350, 340), 272, 64)),
        ("gelu_layernorm", Case("wide", (30, 22), 33, 1100)),
        *(("linear_layernorm", Case("mixed", (30, 22), 33, n, mixed=True)) for n in (64, 1100)),
        *(("gelu_layernorm", Case("mixed", (30, 22), 33, n, mixed=True)) for n in (64, 1100)),
    ],
    "masked_cross_entropy": [
        ("masked_cross_entropy", Case("sync", (rows,), 272, 1304)) for rows in (420, 560, 600, 640)
    ],
}
# Few let the large tiles run, and sums be cut less; many give as many partial sums as a real card.
MULTIPROCESSORS = {"products": 17, "masked_cross_entropy": 4, "embedding": 64, "attention": 4}

# (part of the kernel's name) -> sites that no size needs: at most so many, and why they stay.
REDUNDANT = {
    "backward_tilesIfNS1_4TileILi64ELi64ELi32ELi32ELi3EEELb1EEE": (
        3,
        "the way out of dx in strict fp32: the lane that reads a group there is the one that wrote it; other operands "
        "lie otherwise, and the code is one",
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", RUNS)
def test_every_barrier_and_wait(group, dtype):
    options = {"keep": True, "multiprocessors": MULTIPROCESSORS[group]}
    with allowing_tf32(dtype == "tf32"), cuda_driver.emulated(**options) as device:
        for operation, case in RUNS[group]:
            _forward_and_backward(operation, case, DTYPES[dtype])
        found = 0
        for kernel in dict.fromkeys(launch.name for launch in device.launches):
            survey = mutate.survey(cuda_driver.ptx(kernel), _every_launch(device, kernel), kernel)
            found += len(survey.reported)
            allowed = max((n for part, (n, _) in REDUNDANT.items() if part in kernel), default=0)
            listed = "\n".join(f"line {site.line}: {site.text}" for site in survey.redundant)
            assert len(survey.redundant) <= allowed, f"{kernel}: nobody misses\n{listed}"
    assert found


def _every_launch(device, kernel: str):
    def run(code: str) -> None:
        for launch in device.launches:
            if launch.name == kernel:
                launch.again(code)

    return run


def _forward_and_backward(operation: str, case: Case, dtype: torch.dtype) -> None:
    inputs = harness.make_inputs(operation, case, dtype)
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    with dispatch.use_backend("cuda"):
        out = harness.public(operation)(**{**inputs, **leaves})
        gradient = harness.make_gradient(case, out)
        torch.autograd.grad(out, list(leaves.values()), gradient, materialize_grads=True)


def test_packing(monkeypatch):
    """Real tokens in all parts of rows that a block packs in several turns; a row before, which it counts."""
    monkeypatch.setattr(encoder, "through_library", lambda: False)
    ids = torch.ones(2, 1100, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    mask[:, ::31] = 1
    tokens = layers.Tokens(ids, mask, ids, None)
    with cuda_driver.emulated(keep=True) as device, dispatch.use_backend("cuda"):
        layers.padded(places=tokens, first_only=True)
        (kernel,) = {launch.name for launch in device.launches if "pack_tokens" in launch.name}
        survey = mutate.survey(cuda_driver.ptx(kernel), _every_launch(device, kernel), kernel)
    assert survey.reported
    assert not survey.redundant
