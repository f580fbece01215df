"""Gradients of every parameter and of inputs_embeds against transformers; of dropout, across layouts."""

from __future__ import annotations

import copy

import pytest
import torch

import bertfast
from harness import near, seeds
from models.ecosystem import in_float64

B, S, H = 3, 11, 48
RIGHT = torch.tensor([[1] * 11, [1] * 4 + [0] * 7, [1] + [0] * 10])


def loss(model, dtype, mask, **inputs):
    """A scalar that every real token and the pooled rows enter with a weight of their own."""
    output = model(**inputs, attention_mask=mask)
    weight = torch.linspace(-1, 1, B * S * H, dtype=dtype).view(B, S, H).sin()
    pooled = torch.linspace(-2, 3, B * H, dtype=dtype).view(B, H).cos()
    return (output[0] * weight * mask[..., None]).sum() + (output[1] * pooled).sum()


def gradients(model, dtype, mask, **inputs):
    model.zero_grad()
    loss(model, dtype, mask, **inputs).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("mask", [torch.ones_like(RIGHT), RIGHT], ids=["dense", "padded"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("train", [False, True])
def test_parameters(pair, train, dtype, mask):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs, ours = (model.train(train) for model in pair(dtype, **none))
    inputs = {
        "input_ids": torch.randint(0, 99, (B, S)) * mask,  # id 0 at padding, and once inside
        "token_type_ids": torch.randint(0, 3, (B, S)),
        "position_ids": torch.randint(0, 40, (B, S)),
    }
    inputs["input_ids"][0, 5] = 0
    got = gradients(ours, dtype, mask, **inputs)
    exact = gradients(in_float64(theirs), torch.float64, mask, **inputs)
    eager = gradients(theirs.float(), torch.float32, mask, **inputs)
    assert all(p.grad is not None for p in ours.parameters())
    assert (got["embeddings.word_embeddings.weight"][0] == 0).all()
    near("gradients", got, exact, eager)


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_embeddings(pair, act):
    theirs, ours = pair(torch.float64, hidden_act=act)
    grads = []
    for model in (ours, in_float64(theirs), theirs.float()):
        dtype = next(model.parameters()).dtype
        embeds = torch.linspace(-1, 1, B * S * H, dtype=dtype).view(B, S, H).requires_grad_()
        loss(model, dtype, RIGHT, inputs_embeds=embeds).backward()
        grads.append(embeds.grad)
    assert (grads[0][RIGHT == 0] == 0).all()
    near("gradient of inputs_embeds", *grads)


def test_paths_agree(ours):
    """Packed call, written-out attention and module path have the gradients of the padded call."""
    model = ours(torch.float64)
    ids = torch.randint(1, 99, (B, S))
    real = RIGHT.bool()
    weight = torch.randn(int(real.sum()), H, dtype=torch.float64)

    def run(model, **inputs):
        model.zero_grad()
        states = model(**inputs).last_hidden_state
        states = states[0] if "cu_seq_lens_q" in inputs else states[real]
        (states * weight.to(states.dtype)).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    padded = {"input_ids": ids, "attention_mask": RIGHT}
    want, single = run(model, **padded), run(copy.deepcopy(model).float(), **padded)
    starts = torch.nn.functional.pad(RIGHT.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
    near("packed", run(model, input_ids=ids[real][None], cu_seq_lens_q=starts), want, single)
    near("attentions", run(model, **padded, output_attentions=True), want, single)
    model.encoder.layer[0].output.dense.register_forward_hook(lambda *arguments: None)
    near("modules", run(model, **padded), want, single)


def test_dropout_gradients(ours):
    """With one seed the packed batch and the padded one, and both backends, have the same gradients."""
    model = ours().train()
    ids = torch.randint(1, 99, (B, S))
    wide = torch.nn.functional.pad(RIGHT, (0, 5, 0, 2))
    given = {"input_ids": ids, "attention_mask": RIGHT}
    padded = {"input_ids": torch.nn.functional.pad(ids, (0, 5, 0, 2)), "attention_mask": wide}

    def run(model, backend, inputs):
        model.zero_grad()
        seeds.restart(5)
        with bertfast.use_backend(backend):
            model(**inputs)[0][:B, :S].sin().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    exact, eager = run(in_float64(model), "auto", given), run(model, "reference", given)
    for inputs in (given, padded):
        near("gradients", run(model, "auto", inputs), exact, eager)
