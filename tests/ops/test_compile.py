"""The operations under torch.compile: one graph, a number of tokens that the compiler does not
know, gradients, dropout.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import harness
from bertfast import ops
from bertfast.ops._seed import draw_seed

HIDDEN, HEADS, WORDS = 16, 2, 40


def _parameters():
    generator = harness.seeds.generator()

    def normal(*shape):
        return (torch.randn(*shape, generator=generator) * 0.3).requires_grad_()

    return {
        "word": normal(WORDS, HIDDEN),
        "position": normal(50, HIDDEN),
        "segment": normal(2, HIDDEN),
        "square": [normal(HIDDEN, HIDDEN) for _ in range(6)],
        "row": [normal(HIDDEN) for _ in range(12)],
        "words": normal(WORDS),
    }


def _model(p, parameters):
    w, b = parameters["square"], parameters["row"]

    def dropout():
        return {"p": p, "seed": draw_seed("cpu") if p else None}

    def run(ids, mask):
        tokens = mask.flatten().nonzero().squeeze(1)  # how many is known when it runs
        packed = ids.flatten()[tokens]
        starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        places = torch.arange(mask.shape[1]).expand_as(mask).flatten()[tokens]
        x = ops.embedding(
            packed, parameters["word"], None, places, parameters["position"], packed * 0, parameters["segment"],
            b[0], b[1], eps=1e-6, cu_seqlens=starts, padding_idx=0, **dropout(),
        )  # fmt: skip
        qkv = ops.qkv_projection(x, w[0], w[1], w[2], b[2], b[3], b[4], num_heads=HEADS)
        context = ops.attention(qkv, starts, mask.shape[1], **dropout())
        x = ops.linear_layernorm(
            context, w[3], b[5], x, b[6], b[7], eps=1e-6, cu_seqlens=starts, **dropout()
        )
        x = ops.linear_gelu(x, w[4], b[8])
        x = ops.gelu_layernorm(x, w[5], b[9], b[10], b[11], eps=1e-6)
        return ops.masked_cross_entropy(x, parameters["word"], parameters["words"], packed)

    return run


def _leaves(parameters):
    return [
        leaf
        for value in parameters.values()
        for leaf in (value if isinstance(value, list) else [value])
    ]


@pytest.mark.parametrize(
    ("backend", "p", "grad"),
    [("aot_eager", 0.2, True), ("inductor", 0.2, True), ("aot_eager", 0.0, False)],
)
def test_one_graph_for_all_shapes(backend, p, grad):
    """Full graph, at most three graphs for five ragged shapes; losses, masks and gradients are the
    eager ones.
    """
    torch._dynamo.reset()
    parameters = _parameters()
    leaves = _leaves(parameters)
    counter = CompileCounterWithBackend(backend)
    model = _model(p, parameters)
    with (
        torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
        torch.set_grad_enabled(grad),
    ):
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        for lengths in ((3, 5), (9, 1, 4), (2,), (7, 7, 0), (31, 8)):
            ids = torch.randint(0, WORDS, (len(lengths), max(lengths)))
            mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
            results = []
            for function in (model, compiled):
                harness.seeds.restart(len(ids))
                loss = function(ids, mask)
                results.append(
                    [loss.detach(), *(torch.autograd.grad(loss, leaves) if grad else ())]
                )
            for eager, traced in zip(*results, strict=True):
                assert traced.equal(eager)
    assert counter.frame_count <= 3
