"""All layers in one call: the bits of the operations one by one, and a reason wherever these have to be called."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bertfast import dispatch, extension
from bertfast.core import encode
from bertfast.core.weights import example_weights, prepack_layers
from bertfast.errors import ArgumentError, UnsupportedError
from bertfast.ops.encoder import Call, encoder, reference
from harness import near
from harness.layers import (
    TRAINING,
    both_ways,
    call_of,
    gradients_of,
    layers_of,
    one_by_one,
    same_bits,
    stream,
    tensors_of,
    together,
    trained,
)

pytestmark = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
BATCHES = {
    "one token": [1],
    "one": [23],
    "even": [40, 40, 40, 40, 40, 40],  # groups of sequences, a thread each
    "ragged": [64, 3, 17, 40, 9, 52, 31, 28, 60, 2],
    "uneven": [64, 2],
    "long": [60] * 40,  # several groups a thread
    "empty sequences": [0, 30, 0, 60, 64, 55, 0],
}


@pytest.fixture(params=[1, 2, 3], ids="{}-threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_equal_bits(lengths, dtype, threads):
    weights = layers_of(dtype)
    x, batch = stream(lengths, dtype)
    expected = one_by_one(weights, x, batch)
    out, states = together(weights, x, batch, states=True)
    assert torch.equal(states, torch.stack(expected))
    assert torch.equal(out, expected[-1])
    first, none = together(weights, x, batch, first_only=True)
    assert none is None
    assert torch.equal(first, one_by_one(weights, x, batch, first_only=True)[-1])
    prepack_layers(weights.layers)
    assert torch.equal(together(weights, x, batch)[0], expected[-1])


@pytest.mark.parametrize("kind", TRAINING)
def test_equal_gradients(kind, threads):
    x, batch = stream(BATCHES["ragged"])
    same_bits(*both_ways(layers_of(), x, batch, kind))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", ["one token", "uneven", "ragged", "empty sequences"])
def test_equal_gradients_in_every_dtype(lengths, dtype, recompute):
    x, batch = stream(BATCHES[lengths], dtype)
    same_bits(*both_ways(layers_of(dtype), x, batch, "first rows, dropout", recompute))
    same_bits(*both_ways(layers_of(dtype), x, batch, "dropout", recompute))


def test_no_second_gradient():
    x, batch = stream([5, 4])
    weights, start = trained(layers_of(), (0, 1, 2), (0.0, 0.0, 0.0)), x.requires_grad_()
    out = together(weights, start, batch)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), start, create_graph=True)
    with pytest.raises(UnsupportedError, match="differentiated twice"):
        grad.sum().backward()


def test_a_weight_written_between_forward_and_backward():
    x, batch = stream([5, 4])
    weights = trained(layers_of(), (0, 1, 2), (0.0, 0.0, 0.0))
    out = together(weights, x, batch)[0]
    with torch.no_grad():
        weights.layers[1].outer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_is_saved_may_be_kept_elsewhere():
    """By hooks on saved tensors, as checkpointing and offloading do."""
    x, batch = stream([30, 20])
    weights, found = trained(layers_of(), (0, 1, 2), (0.0, 0.0, 0.0)), []
    for around in (
        torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
        torch.enable_grad(),
    ):
        with around:
            out = together(weights, x, batch)[0]
        found.append(gradients_of(out, weights, x))
        for layer in weights.layers:
            for part in layer[:8]:
                part.weight.grad = part.bias.grad = None
    assert all(map(torch.equal, *(grads[1:] for grads in found)))


@torch.no_grad()
def test_rows_of_no_sequence(threads):
    weights = layers_of()
    x, batch = stream([40] * 6)
    batch = batch._replace(cu_seqlens=batch.cu_seqlens[:-1])
    assert torch.equal(together(weights, x, batch)[0], one_by_one(weights, x, batch)[-1])


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accuracy(dtype, first_only):
    """Result, states and gradients against the definition, with dropout."""
    x, batch = stream(BATCHES["empty sequences"], dtype)
    seeds, p, run = torch.arange(9).view(3, 3) * 977 + 5, (0.1, 0.2, 0.3), range(3)

    def definition(dtype, **asked):
        weights = trained(layers_of(dtype), run, p)
        start = stream(BATCHES["empty sequences"], dtype)[0].requires_grad_()
        call = Call(
            *call_of(weights, start, batch), 2, first_only, not first_only, p=p, seeds=seeds,
            example_ids=batch.example_ids,
        )  # fmt: skip
        out, states = reference.forward(call)
        return [out, states, *gradients_of(out, weights, start)]

    weights = trained(layers_of(dtype), run, p)
    start = x.clone().requires_grad_()
    out, _ = together(weights, start, batch, first_only, seeds=seeds)
    with torch.no_grad():
        states = None if first_only else together(weights, x, batch, states=True, seeds=seeds)[1]
    got = [out, states, *gradients_of(out, weights, start)]
    near("encoder", got, definition(torch.float64), definition(dtype))


def changed(index, change):
    """A way to make one tensor of the layers another."""

    def run(tensors):
        tensors[index] = change(tensors[index])

    return run


ODD = {
    "a gradient is wanted of what are no plain tensors": changed(25, lambda t: Odd(t)),
    "its weights are not in one dtype": changed(20, lambda t: t.bfloat16()),
    "its layers are not alike": changed(13, lambda t: t[:-1]),
    "its layers are not alike ": changed(40, lambda t: t[:-1]),
    "a weight is not contiguous": changed(1, lambda t: t.t().contiguous().t()),
    "a weight is on another device": changed(47, lambda t: t.to("meta")),
    "some weights are prepacked or quantized, others are not in the same way": changed(
        6, lambda t: _prepacked(t)
    ),
}


class Odd(torch.nn.Parameter):
    """A tensor of a subclass that might do anything."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def _prepacked(weight):
    from bertfast.ops._weights import prepack

    return prepack(weight)


@pytest.mark.parametrize("reason", ODD)
def test_what_it_leaves_to_the_operations(reason):
    weights = layers_of()
    x, *rest = call_of(weights, *stream([5, 4]))
    ODD[reason](rest[0])
    with dispatch.record() as log:
        assert encoder(x, *rest, num_heads=2) is None
    assert [(c.operation, c.backend, c.reasons) for c in log] == [
        ("encoder", "by layers", {"cpu": reason.strip()})
    ]


@torch.no_grad()
def test_every_state_and_first_rows_only():
    """As check_finite looks at a head that needs first rows."""
    weights, seen = layers_of(), []
    weights = weights._replace(embeddings=example_weights("cpu")[0].embeddings)
    _, batch = stream([9, 4, 7])
    with dispatch.record() as log:
        out = encode.encode_packed(
            weights, batch, first_only=True, observe=lambda _, rows: seen.append(rows) or rows
        )
    assert any("first rows only" in choice.reasons.get("cpu", "") for choice in log)
    assert [len(rows) for rows in seen] == [20, 20, 20, 3]
    assert out.equal(encode.encode_packed(weights, batch, first_only=True))


@torch.no_grad()
def test_moments_that_ask_for_the_operations():
    weights = layers_of()
    call = call_of(weights, *stream([5, 4]))
    with torch.enable_grad(), dispatch.record() as log:
        call[1][0].requires_grad_()
        assert encoder(*call, num_heads=2, states=True) is None
    assert log[0].reasons == {"cpu": "every layer's output is wanted, with a gradient"}
    for around, reason in (
        (dispatch.use_backend("reference"), "reference was asked for"),
        (torch.autocast("cpu"), "autocast is on"),
    ):
        with around, dispatch.record() as log:
            assert encoder(*call, num_heads=2) is None
        assert log[0].reasons == {"cpu": reason}


def test_wrong_arguments():
    x, tensors, eps, starts, longest = call_of(layers_of(), *stream([5, 4]))
    with pytest.raises(ArgumentError, match="cu_seqlens"):
        encoder(x, tensors, eps, torch.tensor([0, 12], dtype=torch.int32), longest, num_heads=2)
    with pytest.raises(ArgumentError, match="max_seqlen"):
        encoder(x, tensors, eps, starts, 3, num_heads=2)
    with pytest.raises(ArgumentError, match=r"seed: expected torch.int64 \[3, 3\] on cpu"):
        encoder(x, tensors, eps, starts, longest, num_heads=2, p=(0.0, 0.5, 0.0))
    drops = {"p": (0.0, 0.5, 0.0), "seeds": torch.zeros(3, 3).long()}
    with pytest.raises(ArgumentError, match=r"example_ids: .*torch.int64 \[2\] on cpu"):
        encoder(x, tensors, eps, starts, longest, num_heads=2, **drops, example_ids=starts.long())
    with torch.no_grad(), pytest.raises(ValueError, match="eps: expected 2 of each layer"):
        encoder(x, tensors, eps[1:], starts, longest, num_heads=2)


def test_another_instruction_set():
    weights = layers_of()
    prepack_layers(weights.layers)
    call = call_of(weights, *stream([5, 4]))
    before = extension.cpu.variant()
    extension.cpu.set_variant("baseline")
    try:
        if before == "baseline":
            pytest.skip("this machine has one instruction set")
        with pytest.raises(UnsupportedError, match="prepacked for the instruction set"):
            encoder(*call, num_heads=2)
    finally:
        extension.cpu.set_variant(before)


@torch.no_grad()
def test_a_write_shows_in_the_next_call():
    weights = layers_of()
    x, batch = stream([5, 4])
    first = together(weights, x, batch)[0].clone()
    for tensor in tensors_of(weights):
        tensor.view(-1).numpy()[0] += 1
        second = together(weights, x, batch)[0]
        assert not torch.equal(first, second)
        assert torch.equal(second, one_by_one(weights, x, batch)[-1])
        first = second.clone()


OUT_OF_MEMORY = """
import resource, torch
from bertfast.core.encode import encode_layers
from bertfast.core.weights import example_weights
from types import SimpleNamespace
torch.set_num_threads(1)
weights, _ = example_weights("cpu", hidden=16, heads=2, layers=1)
tokens = 10**6
x = torch.zeros(tokens, 16)
starts = torch.tensor([0, tokens], dtype=torch.int32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
with torch.no_grad():
    encode_layers(weights, x, SimpleNamespace(cu_seqlens=starts, max_seqlen=tokens, example_ids=None))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits memory as Linux does")
def test_memory_that_cannot_be_had():
    found = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert "MemoryError: no memory for the layers' intermediates" in found.stderr
    assert "for 1000000 tokens" in found.stderr
