"""Forward and backward of all layers as CUDA graphs, recorded and replayed by the fake runtime, the kernels executed.

Before each forward's replay the arena is made NaN and counts as unwritten.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

import bertfast
from bertfast import BertConfig, BertModel, dispatch
from bertfast.errors import ArgumentError
from bertfast.ops import _graphs
from gpu_code import cuda_driver, nvcc
from gpu_code.recording import MODEL, card, poison
from harness import seeds
from harness.layers import (
    TRAINING,
    gradients_of,
    layers_of,
    same_bits,
    stream,
    tensors_of,
    together,
    trained,
)

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
LENGTHS, OTHER = (6, 0, 3), (1, 7, 1)


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    with card(request, monkeypatch) as device, bertfast.graphs("training"):
        yield device


def _call(lengths=LENGTHS, kind="dropout", scale=1.0, draw=0, dtype=torch.bfloat16, count=2):
    """(x, batch, options, what is trained, whether x is) for so many layers."""
    first_only, dropout, layers, of_x, lowest = TRAINING[kind]
    x, batch = stream(lengths, dtype)
    drawn = torch.arange(3 * count).view(count, 3) * 977 + draw if any(dropout) else None
    options = {"first_only": first_only, "seeds": drawn}
    kept = [layer for layer in layers if layer < count]
    return x * scale, batch, options, (kept, dropout, lowest), of_x


def _forward(weights, call):
    x, batch, options, (layers, dropout, lowest), of_x = call
    copy, start = trained(weights, layers, dropout, lowest), x.clone().requires_grad_(of_x)
    return together(copy, start, batch, **options)[0], copy, start


def _step(weights, call):
    """(result, gradients, how many of its two graphs were replayed)."""
    with dispatch.record() as log:
        out, copy, start = _forward(weights, call)
        grads = gradients_of(out, copy, start)
    return out.detach(), grads, _count(log)


def _count(log) -> int:
    return sum((c.direction, c.backend) == ("graph", "cuda") for c in log)


def _plain(weights, call):
    with bertfast.graphs(False):
        return _step(weights, call)[:2]


def _replays(device, weights, *calls) -> list[int]:
    """Checks the bits of each call; how many graphs each replayed."""
    counts = []
    for call in calls:
        expected = _plain(weights, call)
        poison(device)
        *found, count = _step(weights, call)
        same_bits(found, expected)
        counts.append(count)
    return counts


@pytest.mark.parametrize("kind", ["dropout", "first rows, dropout", "x alone", "all"])
def test_replays_of_other_inputs(device, kind):
    """Other rows, lengths, seeds; the bits of results and gradients are those of plain launches."""
    weights = layers_of(torch.bfloat16, 2)
    same, other = _call(kind=kind), _call(OTHER, kind, 0.5, draw=5)
    assert _replays(device, weights, same, same, other, same) == [0, 2, 2, 2]


@pytest.mark.parametrize("device", [{"order": "shuffled", "seed": 3}], indirect=True, ids=str)
def test_another_order_of_blocks(device):
    weights, call = layers_of(torch.float32, 1), _call(dtype=torch.float32, count=1)
    assert _replays(device, weights, call, call, call) == [0, 2, 2]


def test_layers_below_save_nothing(device):
    """Of the second layer, some gradients; without dropout the first one's forward is a graph of its own."""
    call = _call(kind="from inner on")
    call = (*call[:3], ([1], (0.0, 0.0, 0.0), (5,)), False)
    assert _replays(device, layers_of(torch.bfloat16, 2), call, call, call) == [0, 3, 3]


def test_recomputing(device):
    """Gradient checkpointing: the backward's graph has the layers' forward, too."""
    weights, call, found = layers_of(torch.bfloat16, 2), _call(), []
    for on in (False, "training", "training"):
        with bertfast.graphs(on), dispatch.record() as log:
            x, batch, options, (layers, dropout, lowest), _ = call
            copy, start = trained(weights, layers, dropout, lowest), x.clone().requires_grad_()
            copy = copy._replace(checkpointed=copy.layers)
            out = together(copy, start, batch, **options)[0]
            found.append((out, gradients_of(out, copy, start), _count(log)))
    assert [count for *_, count in found] == [0, 0, 2]
    same_bits(found[2][:2], found[0][:2])


def _ready(device, weights, *calls) -> None:
    """The calls are recorded."""
    for call in calls * 2:
        _step(weights, call)
    assert [_step(weights, call)[2] for call in calls] == [2] * len(calls)


def test_a_second_forward_before_the_backward(device):
    """It is launched, and both backwards are right, whichever comes first; so is one that is larger."""
    weights, calls = layers_of(torch.bfloat16, 2), (_call(), _call(OTHER, scale=0.5, draw=5))
    right = [_plain(weights, call) for call in calls]
    _ready(device, weights, calls[0])
    for order in ((0, 1), (1, 0)):
        with dispatch.record() as log:
            found = [_forward(weights, call) for call in calls]
        assert _count(log) == 1
        grads = {which: gradients_of(*found[which]) for which in order}
        for which in order:
            same_bits((found[which][0].detach(), grads[which]), right[which])
    held, size = _forward(weights, calls[0]), next(iter(_graphs.arenas())).memory.nbytes
    large = _call((20, 20))
    assert [_step(weights, large)[2] for _ in range(3)] == [0, 0, 0]
    assert [arena.memory.nbytes for arena in _graphs.arenas()] == [size]
    same_bits((held[0].detach(), gradients_of(*held)), right[0])
    assert [_step(weights, large)[2] for _ in range(3)] == [0, 2, 2]


def test_a_backward_that_never_comes(device):
    weights, call = layers_of(torch.bfloat16, 1), _call(count=1)
    _ready(device, weights, call)
    out = _forward(weights, call)
    assert _step(weights, call)[2] == 0
    del out
    assert _step(weights, call)[2] == 2


def test_two_backwards_of_one_forward(device):
    """What was saved stays, so that the next forward is launched; a loss that is kept alone holds nothing."""
    weights, call = layers_of(torch.bfloat16, 1), _call(count=1)
    _, right = _plain(weights, call)
    _ready(device, weights, call)
    out, _, start = _forward(weights, call)
    dout = torch.randn(out.shape, generator=seeds.generator(3)).to(out)
    out.backward(dout, retain_graph=True)
    assert _step(weights, _call(scale=0.5, draw=3, count=1))[2] == 0
    once, start.grad = start.grad, None
    out.backward(dout)
    assert torch.equal(once, right[0])
    assert torch.equal(start.grad, right[0])
    assert _step(weights, call)[2] == 2  # `out` is alive


def test_results_and_gradients_are_the_callers(device):
    """A later replay writes to none of them."""
    weights, calls = layers_of(torch.bfloat16, 1), (_call(count=1), _call(scale=0.5, count=1))
    right = [_plain(weights, call) for call in calls]
    _ready(device, weights, calls[0])
    found = []
    for call in calls:
        out, copy, start = _forward(weights, call)
        dout = torch.randn(out.shape, generator=seeds.generator(3))
        out.backward(dout.to(out))
        parts = [t for part in copy.layers[0][:8] for t in part[:2]]
        found.append((out.detach(), [t.grad for t in (start, *parts)]))
    poison(device)
    for got, expected in zip(found, right, strict=True):
        same_bits(got, expected)


def test_saved_tensors_that_are_moved(device):
    """What autograd saves goes elsewhere and comes back (as to the CPU): backward is launched on that."""
    weights, call = layers_of(torch.bfloat16, 1), _call(count=1)
    right = _plain(weights, call)
    _ready(device, weights, call)

    def away(tensor):
        return tensor.clone()

    with (
        torch.autograd.graph.saved_tensors_hooks(away, lambda kept: kept),
        dispatch.record() as log,
    ):
        out, copy, start = _forward(weights, call)
    assert _count(log) == 1
    assert not any(arena.in_use() for arena in _graphs.arenas())
    poison(device)
    with dispatch.record() as log:
        same_bits((out.detach(), gradients_of(out, copy, start)), right)
    assert _count(log) == 0


@pytest.mark.parametrize("which", [0, 5, 9, 15])
def test_a_weight_that_lies_elsewhere(device, which):
    """One tensor of a layer alone; the old memory is NaN."""
    weights, call = layers_of(torch.bfloat16, 1), _call(count=1)
    _ready(device, weights, call)
    tensor = tensors_of(weights)[which]
    kept = tensor.data
    tensor.data = tensor.clone()
    with _disable_current_modes():
        kept.fill_(float("nan"))
    assert _replays(device, weights, call, call, call) == [0, 2, 2]


def test_in_the_callers_own_recording(device):
    """The launches become part of it, and none of ours is replayed or recorded."""
    weights, call = layers_of(torch.bfloat16, 1), _call(count=1)
    _ready(device, weights, call)
    runtime, graph = cuda_driver.runtime(), ctypes.c_void_p()
    handle = ctypes.c_void_p(cuda_driver.STREAM)
    held, launched = _forward(weights, call), len(device.launches)
    assert runtime.cudaStreamBeginCapture(handle, 0) == 0
    try:
        with dispatch.record() as log:
            gradients_of(*held)
            _step(weights, call)
    finally:
        assert runtime.cudaStreamEndCapture(handle, ctypes.byref(graph)) == 0
    assert (len(device.launches), _count(log)) == (launched, 0)
    assert runtime.cudaGraphDestroy(graph) == 0


def test_only_where_asked_for(device):
    weights, call = layers_of(torch.bfloat16, 1), _call(count=1)
    for on in (True, False):
        with bertfast.graphs(on):
            assert [_step(weights, call)[2] for _ in range(3)] == [0, 0, 0]
    with dispatch.held(dispatch.scope()._replace(graph_tokens=8)):
        assert [_step(weights, call)[2] for _ in range(3)] == [0, 0, 0]
    with pytest.raises(ArgumentError, match="enabled: expected True, False or 'training'"):
        bertfast.graphs("train")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_model_learns_alike(device, accumulated):
    """Some steps with dropout, evaluated between forward and backward."""
    ids, found, counts = torch.arange(1, 15).view(2, 7), [], []
    for graphs in (False, "training"):
        seeds.restart(5)
        model = BertModel(BertConfig(**MODEL), graphs=graphs).to(torch.bfloat16).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with bertfast.graphs(True), dispatch.record() as log:
            for step in range(3):
                for _ in range(accumulated):
                    loss = model(ids).pooler_output.float().square().sum()
                    with torch.no_grad():
                        model.eval()(ids + step)
                        model.train()
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
        counts.append(_count(log))
    assert all(map(torch.equal, *found))
    steps = 3 * accumulated - 1
    assert counts == [0, 2 * steps + steps]  # and of each evaluation one
