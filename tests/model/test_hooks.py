"""Hooks, parametrizations and replaced modules are honoured, by that layer alone, and the reason is told."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

import bertfast
from bertfast import dispatch

IDS = torch.randint(1, 99, (3, 7))
MASK = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [0, 1, 0, 1, 1, 0, 0]])
LAYER = "encoder.layer.1"


def run(model, **options):
    """last_hidden_state and {what ran otherwise: why}."""
    with dispatch.record() as log:
        states = model(IDS, attention_mask=MASK, **options).last_hidden_state
    return states, {c.operation: c.reasons["fused"] for c in log if "fused" in c.reasons}


class LowRank(nn.Module):
    """What PEFT puts in the place of a Linear."""

    def __init__(self, base):
        super().__init__()
        self.base, self.a, self.b = (
            base,
            nn.Linear(48, 2, False),
            nn.Linear(2, base.out_features, False),
        )

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class Double(nn.Module):
    def forward(self, weight):
        return weight * 2


def replace(layer):
    layer.attention.self.query = LowRank(layer.attention.self.query)
    nn.init.zeros_(layer.attention.self.query.b.weight)


def patch(layer):
    dense = layer.intermediate.dense
    dense.forward = lambda x: nn.functional.linear(x, dense.weight, dense.bias)


def parametrized(layer):
    weight = layer.attention.output.dense.weight
    with torch.no_grad():
        weight /= 2
    parametrize.register_parametrization(layer.attention.output.dense, "weight", Double())


WAYS = {
    "forward hook": (
        lambda layer: layer.attention.self.value.register_forward_hook(lambda *a: None),
        "attention.self.value has forward hooks",
    ),
    "pre-hook": (
        lambda layer: layer.attention.output.register_forward_pre_hook(lambda *a: None),
        "attention.output has forward pre hooks",
    ),
    "backward hook": (
        lambda layer: layer.output.LayerNorm.register_full_backward_hook(lambda *a: None),
        "output.LayerNorm has backward hooks",
    ),
    "dropout hook": (
        lambda layer: layer.output.dropout.register_forward_hook(lambda *a: None),
        "output.dropout has forward hooks",
    ),
    "LoRA": (replace, "attention.self.query is a LowRank"),
    "parametrization": (parametrized, "attention.output.dense is a ParametrizedLinear"),
    "patched forward": (patch, "intermediate.dense has a forward of its own"),
    "no dropout module": (
        lambda layer: setattr(layer.output, "dropout", nn.Identity()),
        "output.dropout is a Identity",
    ),
    "no bias": (
        lambda layer: layer.output.dense.register_parameter("bias", None),
        "output.dense has no weight or no bias",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_layer(ours, way):
    model = ours()
    if way == "no bias":
        model.encoder.layer[1].output.dense.bias.data.zero_()
    want, plain = run(model)
    change, reason = WAYS[way]
    change(model.encoder.layer[1])
    got, told = run(model)
    assert plain == {}
    assert list(told) == [LAYER]
    assert told[LAYER].startswith(reason)
    assert model.encoder.layer[1].reason == told[LAYER]
    assert model.encoder.layer[0].reason is None
    assert (got - want).abs().max() < 1e-5
    assert reason in bertfast.explain(model, {"input_ids": IDS})
    written, told = run(model, output_attentions=True)
    assert (written - want).abs().max() < 1e-5
    assert set(told) == {LAYER, "attention"}
    assert run(copy.deepcopy(model))[1][LAYER].startswith(reason)


def test_hooks_see_and_change_what_runs(ours):
    model = ours()
    seen = []
    want, _ = run(model)
    handles = [
        module.register_forward_hook(lambda module, _, out: seen.append(type(module).__name__))
        for module in model.encoder.layer[0].modules()
    ]
    states, told = run(model)
    assert sorted(set(seen)) == [
        "BertAttention",
        "BertIntermediate",
        "BertLayer",
        "BertOutput",
        "BertSelfAttention",
        "Dropout",
        "LayerNorm",
        "Linear",
    ]
    assert (states - want).abs().max() < 1e-5
    for handle in handles:
        handle.remove()
    states, told = run(model)
    assert told == {}
    assert model.encoder.layer[0].reason is None
    assert states.equal(want)
    handle = model.encoder.layer[0].intermediate.register_forward_hook(
        lambda _, inputs, out: out * 0
    )
    assert (run(model)[0] - want).abs().max() > 0.1


def test_hooks_of_whole_layers_need_no_detour(ours):
    model, seen = ours(), []
    want, _ = run(model)
    for module in (*model.encoder.layer, model.encoder, model.embeddings, model.pooler, model):
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    states, told = run(model)
    assert told == {}
    assert states.equal(want)
    assert seen == [
        "BertEmbeddings",
        "BertLayer",
        "BertLayer",
        "BertEncoder",
        "BertPooler",
        "BertModel",
    ]
    model.encoder.layer[0].register_forward_hook(lambda _, inputs, out: out * 0)
    assert (run(model)[0] - want).abs().max() > 0.1


def test_embeddings(ours):
    model = ours()
    want, _ = run(model)
    handle = model.get_input_embeddings().register_forward_hook(lambda *a: None)
    got, told = run(model)
    assert told == {"embeddings": "word_embeddings has forward hooks"}
    assert (got - want).abs().max() < 1e-5
    handle.remove()
    model.embeddings.word_embeddings.max_norm = 1e9
    got, told = run(model)
    assert told == {"embeddings": "word_embeddings has max_norm, sparse or scale_grad_by_freq set"}
    assert (got - want).abs().max() < 1e-5
    model.set_input_embeddings(nn.Embedding(500, 48))
    assert model(IDS + 400).last_hidden_state.isfinite().all()


def test_hook_for_all_modules(ours):
    model = ours()
    want, _ = run(model)
    handle = torch_module.register_module_forward_hook(lambda *a: None)
    try:
        got, told = run(model)
    finally:
        handle.remove()
    assert set(told.values()) == {"a hook is registered for all modules"}
    assert (got - want).abs().max() < 1e-5


def test_training_draws_the_same_dropout(ours):
    """A hook must not change the masks: the modules drop what the fused operations drop."""
    model = ours().train()
    torch.manual_seed(1)
    want, _ = run(model)
    model.embeddings.LayerNorm.register_forward_hook(lambda *a: None)
    model.encoder.layer[0].attention.self.key.register_forward_hook(lambda *a: None)
    torch.manual_seed(1)
    got, told = run(model)
    assert set(told) == {"embeddings", "encoder.layer.0"}
    assert (got - want).abs().max() < 1e-4
    model.encoder.layer[0].output.dropout.register_forward_hook(lambda *a: None)
    torch.manual_seed(1)
    assert (
        run(model)[0] - want
    ).abs().max() > 1e-2  # a hooked Dropout is called, and draws its own


def test_activation_that_is_a_module(ours):
    model = ours()
    want, _ = run(model)
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.GELU()
    got, told = run(model)
    assert told == {"linear_gelu": "hidden_act is not gelu"}
    assert (got - want).abs().max() < 1e-5
