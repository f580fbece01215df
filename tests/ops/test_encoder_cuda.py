"""All layers in one call of the backend cuda, executed or on a GPU: the bits of its operations one by one, forward and
backward, in every order of blocks.
"""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch
from bertfast.ops import encoder
from gpu_code import nvcc
from gpu_code.backends import allowing_tf32, running
from harness.layers import (
    TRAINING,
    both_ways,
    layers_of,
    one_by_one,
    same_bits,
    stream,
    together,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RAGGED = (0, 40, 1, 0, 25, 0)


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    """Where the tensors are. What executes kernels is a dispatch mode, under which the layers would run one by one."""
    device = request.config.getoption("--device")
    if device == "cpu" and nvcc.absent():
        pytest.skip(nvcc.absent())
    monkeypatch.setattr(encoder, "through_library", lambda: False)
    return device


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(1,), RAGGED, (70, 60)], ids=["one token", "ragged", "long"])
def test_equal_bits(lengths, dtype, device):
    weights = layers_of(DTYPES[dtype], 2, device)
    x, batch = stream(lengths, DTYPES[dtype], device)
    with running("cuda", device=device), dispatch.use_backend("cuda"):
        expected = one_by_one(weights, x, batch)
        out, states = together(weights, x, batch, states=True)
        alone, none = together(weights, x, batch)
        first, _ = together(weights, x, batch, first_only=True)
        assert none is None
        assert torch.equal(states, torch.stack(expected))
        assert torch.equal(out, expected[-1])
        assert torch.equal(alone, expected[-1])
        assert torch.equal(first, one_by_one(weights, x, batch, first_only=True)[-1])


@torch.no_grad()
def test_rows_of_no_sequence(device):
    weights, (x, batch) = layers_of(count=2, device=device), stream((30, 9, 20), device=device)
    batch = batch._replace(cu_seqlens=batch.cu_seqlens[:-1])
    with running("cuda", device=device), dispatch.use_backend("cuda"):
        assert torch.equal(together(weights, x, batch)[0], one_by_one(weights, x, batch)[-1])


def _train(device, kind, dtype, recompute=False, **options):
    x, batch = stream(RAGGED, DTYPES[dtype], device)
    weights = layers_of(DTYPES[dtype], device=device)
    with running("cuda", device=device, **options), dispatch.use_backend("cuda"):
        return both_ways(weights, x, batch, kind, recompute)


@pytest.mark.parametrize("kind", TRAINING)
def test_equal_gradients(kind, device):
    same_bits(*_train(device, kind, "fp32" if "LN" in kind else "bf16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_gradients_of_layers_that_run_again(dtype, device):
    same_bits(*_train(device, "first rows, dropout", dtype, recompute=True))


def test_equal_gradients_where_sums_are_cut(device):
    """Of the product whose result is multiplied by GELU's slope: what adds its parts multiplies."""
    weights = layers_of(torch.bfloat16, device=device, hidden=384)
    x, batch = stream((5,), torch.bfloat16, device, hidden=384)
    with (
        running("cuda", device=device, multiprocessors=16) as emulated,
        dispatch.use_backend("cuda"),
    ):
        same_bits(*both_ways(weights, x, batch, "from inner on"))
    if emulated is not None:  # the two sums of LN's parameters have a block each
        grids = [launch.grid[0] for launch in emulated.launches if "add_columns" in launch.name]
        assert max(grids) == 3


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_equal_bits_in_every_order(order, device):
    kind = "first rows, dropout"
    same_bits(_train(device, kind, "bf16")[0], _train(device, kind, "bf16", order=order, seed=3)[0])


def test_what_a_call_asks_of_products_holds_inside(device):
    with allowing_tf32(True), dispatch.batch_invariant():
        found = _train(device, "all", "fp32")
    same_bits(*found)
    weights, (x, batch) = layers_of(device=device), stream(RAGGED, device=device)
    with torch.no_grad(), running("cuda", device=device), dispatch.use_backend("cuda"):
        assert not torch.equal(found[0][0], together(weights, x, batch)[0])
