"""What the host takes for twelve layers in one call: the shipped code on a runtime that launches nothing, as a share of
transformers' time for theirs, in the same process. Layers are so narrow that their numbers cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bertfast import dispatch
from bertfast.core import encode
from bertfast.core.batch import pack_rows
from bertfast.core.encode import Tokens
from bertfast.core.weights import example_weights
from gpu_code import cuda_driver, nvcc
from gpu_code.gates import budgets

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
LAYERS, HIDDEN, HEADS, LENGTH = 12, 16, 2, 8
ROUNDS = 25


def _ours(padded: bool) -> tuple[Callable[[], Tensor], list[Tensor]]:
    weights, _ = example_weights("cpu", HIDDEN, HEADS, LAYERS)
    ids = torch.ones(2, LENGTH, dtype=torch.int64)
    tokens = Tokens(ids, torch.ones_like(ids), None, torch.zeros_like(ids))
    batch = pack_rows([[1] * LENGTH] * 2, "cpu")
    x = torch.randn(batch.tokens, HIDDEN)
    leaves = [t for layer in weights.layers for part in layer[:8] for t in part[:2]]
    if padded:
        return lambda: encode.encode_padded(weights, tokens)[0], leaves
    return lambda: encode.encode_layers(weights, x, batch)[0], leaves


def _theirs() -> tuple[Callable[[], Tensor], list[Tensor]]:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEncoder

    config = BertConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=2 * HIDDEN,
        attn_implementation="sdpa",
    )
    encoder = BertEncoder(config).eval()  # without dropout
    x = torch.randn(2, LENGTH, HIDDEN)
    return lambda: encoder(x)[0], list(encoder.parameters())


@pytest.mark.parametrize("direction", budgets.HOST_TIME)
def test_host_time(direction):
    runs, learns = [], direction in ("both", "both replayed")
    for forward, leaves in (_ours(direction.startswith("padded")), _theirs()):
        assert len(leaves) == 16 * LAYERS
        for leaf in leaves:
            leaf.requires_grad_(learns)
        runs.append(_step(forward, leaves) if learns else forward)
    seconds = {0: [], 1: []}
    replays = direction.endswith("replayed")
    with (
        torch.set_grad_enabled(learns),
        dispatch.graphs(dispatch.TRAINING if replays else False),
        cuda_driver.launching_nothing() as launches,
    ):
        with dispatch.record() as log:
            runs[0]()
            runs[0]()
        assert {choice.operation for choice in log} <= {"embedding", "encoder"}
        before = launches()
        runs[0]()
        found = launches() - before
        assert found == 1 + learns if replays else found >= 7 * LAYERS
        for _ in range(ROUNDS):  # in turn, so that a busy machine slows both
            for which, run in enumerate(runs):
                start = time.perf_counter()
                run()
                seconds[which].append(time.perf_counter() - start)
    ours, theirs = min(seconds[0]), min(seconds[1])
    print(f"{direction}: {ours * 1e3:.2f} ms, transformers {theirs * 1e3:.2f} ms")
    assert ours <= budgets.HOST_TIME[direction] * theirs


def _step(forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        out = forward()
        out.backward(torch.ones_like(out))

    return run
