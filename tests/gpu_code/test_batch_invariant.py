"""Inside `batch_invariant` the bits of a row are the same alone and in any batch, on every GPU backend."""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch
from gpu_code import nvcc
from gpu_code.backends import running
from harness import Case

LENGTHS = (33, 300, 25)
CASES = {
    "embedding": Case("batch", LENGTHS, 64, 20),
    "qkv_projection": Case("batch", LENGTHS, 512, 64, heads=2),
    "attention": Case("batch", LENGTHS, outer=128, heads=2),
    "linear_gelu": Case("batch", LENGTHS, 72, 512),
    "linear_layernorm": Case("batch", LENGTHS, 512, 72),
    "gelu_layernorm": Case("batch", LENGTHS, 512, 72),
    "masked_cross_entropy": Case("batch", LENGTHS, 96, 700),
}
BY_TOKEN = ("x", "qkv", "residual", "labels", "input_ids", "position_ids", "token_type_ids")


MULTIPROCESSORS = 8  # few rows leave some of them idle, which invites another way of cutting sums
# Which of them have such a way: their rows differ outside `batch_invariant`. (Attention on triton takes other tiles for
# short sequences, of as many keys: the same bits on the card that the executor is.)
CHOOSE = (
    ("qkv_projection", "cuda"),
    ("linear_gelu", "cuda"),
    ("linear_layernorm", "cuda"),
    ("gelu_layernorm", "cuda"),
    ("masked_cross_entropy", "cuda"),
)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("operation", harness.OPERATIONS)
def test_a_row_alone_and_in_a_batch(operation, backend):
    with dispatch.batch_invariant():
        first, second = _in_a_batch_and_alone(operation, backend)
    assert not harness.other_bits(first, second)


@pytest.mark.parametrize(("operation", "backend"), CHOOSE)
def test_without_it_rows_differ(operation, backend):
    """So the test above can fail."""
    first, second = _in_a_batch_and_alone(operation, backend)
    assert harness.other_bits(first, second)


def _in_a_batch_and_alone(operation, backend):
    if backend == "cuda" and nvcc.absent():
        pytest.skip(nvcc.absent())
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    # with the most ways to choose from
    dtype = {"cuda": torch.float32, "triton": torch.bfloat16}[backend]
    inputs = harness.make_inputs(operation, CASES[operation], dtype)
    inputs |= {"num_items": 9} if "num_items" in inputs else {}
    count = LENGTHS[0]
    alone = {name: t[:count] if name in BY_TOKEN else t for name, t in inputs.items()}
    if "max_seqlen" in inputs:
        alone |= {"cu_seqlens": torch.tensor([0, count], dtype=torch.int32), "max_seqlen": count}
    with running(backend, multiprocessors=MULTIPROCESSORS), dispatch.use_backend(backend):
        return [_rows(operation, given, count) for given in (inputs, alone)]


def _rows(operation, inputs, count):
    """The first rows of the result (of a loss: what it saves), and of the gradient of what has a row a token."""
    given = [name for name in ("x", "qkv") if name in inputs]
    leaves = {name: inputs[name].clone().requires_grad_() for name in given}
    if operation == "masked_cross_entropy":
        _, out = harness.op(operation, "forward")(**inputs)
        gradients = torch.autograd.grad(
            harness.public(operation)(**inputs | leaves), list(leaves.values())
        )
    else:
        out = harness.public(operation)(**inputs | leaves)
        generator = harness.seeds.generator(1)
        dout = torch.randn(sum(LENGTHS), *out.shape[1:], generator=generator).to(out.dtype)
        gradients = (
            torch.autograd.grad(out, list(leaves.values()), dout[: len(out)]) if given else ()
        )
    rows = {f"gradient of {name}": g[:count] for name, g in zip(given, gradients, strict=True)}
    return {"out": out.detach()[:count], **rows}
