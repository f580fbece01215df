"""CUDA graphs with products of cuBLASLt among the kernels: the fakes record both, and replay them in order."""

from __future__ import annotations

import pytest
import torch

import bertfast
from bertfast import dispatch
from bertfast.ops import _graphs
from gpu_code import cublaslt, nvcc
from gpu_code.recording import card, poison
from harness.layers import (
    gradients_of,
    layers_of,
    same_bits,
    stream,
    tensors_of,
    together,
    trained,
)

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
NAME = "cuda:cublaslt"


@pytest.fixture
def device(request, monkeypatch):
    with card(request, monkeypatch) as device, dispatch.use_backend(NAME):
        yield device


def _counted(log) -> int:
    return sum((c.direction, c.backend) == ("graph", "cuda") for c in log)


def test_forward(device):
    """Other rows, other lengths, weights written in place: the bits of plain calls."""
    weights = layers_of(torch.bfloat16, 2)
    with torch.no_grad(), cublaslt.present(device) as products:
        for turn, lengths in enumerate(((9, 0, 4), (9, 0, 4), (1, 12, 0), (9, 0, 4))):
            x, batch = stream(lengths, torch.bfloat16)
            call = x * (1 + turn), batch._replace(example_ids=None)
            if turn == 3:
                for tensor in tensors_of(weights):
                    tensor.mul_(0.75)
            with bertfast.graphs(False):
                before = len(products)
                expected = together(weights, *call)[0]
                each = len(products) - before
            poison(device)
            with dispatch.record() as log:
                found = together(weights, *call)[0]
            assert torch.equal(found, expected)
            assert _counted(log) == (turn > 0)
            assert len(products) - before == 2 * each == 2 * 2 * 5
    assert len(_graphs._CAPTURED) == 1


def test_training(device):
    """Forward and backward, with dropout drawn anew."""
    weights, found = layers_of(torch.bfloat16, 2), []
    x, batch = stream((6, 0, 3), torch.bfloat16)

    def step(turn):
        copy, start = trained(weights, (0, 1), (0.1, 0.1, 0.1)), x.clone().requires_grad_()
        seeds = torch.arange(6).view(2, 3) + turn
        out = together(copy, start, batch, seeds=seeds)[0]
        return out.detach(), gradients_of(out, copy, start)

    with cublaslt.present(device):
        for turn in range(3):
            with bertfast.graphs(False):
                expected = step(turn)
            poison(device)
            with bertfast.graphs("training"), dispatch.record() as log:
                same_bits(step(turn), expected)
            found.append(_counted(log))
    assert found == [0, 2, 2]
