"""A whole model, forward and backward, through executed kernels: the reference's numbers, few launches."""

from __future__ import annotations

import contextlib

import pytest
import torch

from bertfast import BertConfig, BertForMaskedLM, dispatch
from bertfast.core.batch import pack_rows
from bertfast.models import engine
from bertfast.models.bert import BertLayer
from bertfast.ops._seed import draw_seed
from gpu_code import nvcc
from gpu_code.backends import running
from gpu_code.gates import budgets
from harness import near, seeds

CONFIG = {
    "vocab_size": 211,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 160,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


def _batch(lengths: tuple[int, ...]) -> dict:
    generator = seeds.generator(7)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, CONFIG["vocab_size"], shape, generator=generator) * mask
    labels = torch.where(mask & (torch.rand(shape, generator=generator) < 0.3), ids, -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def _loss_and_gradients(dtype, batch, backend, device, autocast=False) -> dict[str, torch.Tensor]:
    seeds.restart(3)
    model = BertForMaskedLM(BertConfig(**CONFIG)).to(dtype).train()
    seeds.restart(4)  # of the dropout
    with device, dispatch.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


@pytest.fixture(params=["triton", "cuda"])
def backend(request, monkeypatch):
    # What executes kernels is a dispatch mode, under which models leave the work to transformers.
    monkeypatch.setattr(engine, "_reason_of_moment", lambda: None)
    if request.param == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    elif nvcc.absent():
        pytest.skip(nvcc.absent())
    return request.param


@pytest.mark.parametrize("lengths", [(17, 5, 1), (150, 33)], ids=["short", "long"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "autocast"])
def test_model(backend, dtype, lengths):
    batch, nothing = _batch(lengths), contextlib.nullcontext()
    autocast = dtype == "autocast"
    kept = torch.bfloat16 if dtype == "bf16" else torch.float32
    exact = _loss_and_gradients(torch.float64, batch, "reference", nothing)
    eager = _loss_and_gradients(kept, batch, "reference", nothing, autocast)
    with dispatch.record() as log:
        found = _loss_and_gradients(kept, batch, backend, running(backend), autocast)
    assert {choice.backend for choice in log if choice.operation != "encoder"} == {backend}
    assert {choice.operation for choice in log} >= set(dispatch.operations()) - {"pack", "unpack"}
    near("loss and gradients", found, exact, eager, torch.bfloat16 if autocast else None)


@pytest.mark.parametrize("longest", [128, 384])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_launches_of_a_layer(backend, longest, deterministic, p):
    """Kernels of the backends, and what torch launches in between: memsets, casts, the two sums of gradients that meet;
    with dropout the seeds are drawn too, which the budget leaves out.
    """
    dropout = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
    config = BertConfig(**CONFIG | dropout | {"max_position_embeddings": 512})
    layer = BertLayer(config).to(torch.bfloat16).train()
    hidden = torch.randn(1, 2 * longest, 64, dtype=torch.bfloat16, requires_grad=True)
    dout = torch.ones_like(hidden)
    batch = pack_rows([[1] * longest] * 2, "cpu")
    torch.use_deterministic_algorithms(deterministic)
    try:
        with running(backend, execute=False) as device, dispatch.use_backend(backend):
            drawn = draw_seed("cpu", 3).split(1) if p else (None, None, None)
            out = layer(hidden, batch=batch, seeds=drawn)
            forward = device.launched_in_all()
            out.backward(dout)
            both = device.launched_in_all()
    finally:
        torch.use_deterministic_algorithms(False)
    seeds = 1 if p else 0
    assert len(forward) - seeds <= budgets.LAUNCHES_FORWARD, forward
    limit = budgets.LAUNCHES_DETERMINISTIC if deterministic else budgets.LAUNCHES_BOTH[backend]
    assert len(both) - seeds <= limit, both
    assert forward.count("random_.from") == seeds
