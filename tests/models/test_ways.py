"""Which way a call goes: fused, fused around stand-ins of a Linear, or transformers' own forward; all agree."""

from __future__ import annotations

import copy
import logging
import types

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune

import bertfast
from bertfast import dispatch
from bertfast.models import engine, fusion
from harness import near, seeds
from models.ecosystem import differing, gradients, in_float64

IDS = seeds.token_ids(3, 7)
MASK = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1, 1, 0, 1, 1, 0, 0]])
REAL = MASK.bool()


def run(model, **options):
    """last_hidden_state at real tokens, and what ran otherwise than fused: (operation, backend, reason)."""
    with dispatch.record() as log:
        states = model(IDS, attention_mask=MASK, **options).last_hidden_state
    told = [(c.operation, c.backend, c.reasons["fused"]) for c in log if "fused" in c.reasons]
    return states[REAL], told


def same_states(got, theirs):
    """last_hidden_state at real tokens, by the accuracy check."""
    near("states", got, run(in_float64(theirs))[0], run(theirs)[0])


class LowRank(nn.Module):
    """Somebody's own module in the place of a Linear."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.low = nn.Linear(48, base.out_features, False)

    def forward(self, x):
        return self.base(x) + self.low(x)


class Double(nn.Module):
    def forward(self, weight):
        return weight * 2


class Renamed(nn.Linear):
    """A subclass of Linear with Linear's forward."""


def hook(place, kind="forward_hook"):
    return lambda layer: getattr(layer.get_submodule(place), f"register_{kind}")(lambda *a: None)


def patch(layer):
    dense = layer.intermediate.dense
    dense.forward = types.MethodType(nn.Linear.forward, dense)


def replace(place, make):
    def change(layer):
        parent, _, name = place.rpartition(".")
        parent = layer.get_submodule(parent)
        setattr(parent, name, make(getattr(parent, name)))

    return change


def narrow(layer):
    """Half of the heads' rows, while the module still says four heads."""
    attention = layer.attention
    for linear in (attention.self.query, attention.self.key, attention.self.value):
        linear.weight = nn.Parameter(linear.weight[:24].clone())
        linear.bias = nn.Parameter(linear.bias[:24].clone())
        linear.out_features = 24
    attention.output.dense.weight = nn.Parameter(attention.output.dense.weight[:, :24].clone())


def fewer_heads(layer):
    narrow(layer)
    layer.attention.self.num_attention_heads = 2
    layer.attention.self.all_head_size = 24


class Counted(torch.Tensor):
    """A tensor of somebody's own kind."""

    def new_empty(self, *arguments, **fields):  # so that it can be copied
        return super().new_empty(*arguments, **fields).as_subclass(Counted)


def subclass(layer):
    weight = layer.attention.self.key.weight
    layer.attention.self.key.weight = nn.Parameter(weight.detach().as_subclass(Counted))


def no_bias(layer):
    layer.output.dense.register_parameter("bias", None)


THEIRS = {
    "forward hook": (hook("attention.self.value"), "attention.self.value has forward hooks"),
    "pre-hook": (hook("attention.output", "forward_pre_hook"), "has forward pre hooks"),
    "backward hook": (hook("output.LayerNorm", "full_backward_hook"), "has backward hooks"),
    "hook on a layer": (hook(""), "encoder.layer.1 has forward hooks"),
    "dropout hook": (hook("output.dropout"), "output.dropout has forward hooks"),
    "patched forward": (patch, "intermediate.dense has a forward of its own"),
    "own module": (replace("attention.self.query", LowRank), "query is a LowRank"),
    "other dropout": (replace("output.dropout", lambda _: nn.AlphaDropout(0)), "AlphaDropout"),
    "other norm": (replace("output.LayerNorm", lambda _: nn.RMSNorm(48)), "is a RMSNorm"),
    "tensor subclass": (subclass, "attention.self.key.weight is a Counted"),
    "narrow": (narrow, "query has 24 outputs for 4 heads of 12"),
    "compiled by itself": (lambda layer: layer.compile(backend="eager"), "is compiled by itself"),
    "float64 inside": (
        replace("attention.output.LayerNorm", lambda norm: copy.deepcopy(norm).double()),
        "in torch.float64",
    ),
}
MODULES = {
    "parametrization": (
        lambda layer: parametrize.register_parametrization(
            layer.attention.output.dense, "weight", Double()
        ),
        "attention.output.dense",
    ),
    "weight norm": (
        lambda layer: parametrizations.weight_norm(layer.output.dense),
        "output.dense",
    ),
    "prune": (
        lambda layer: prune.l1_unstructured(layer.intermediate.dense, "weight", 0.5),
        "intermediate.dense",
    ),
    "subclass": (
        replace("attention.self.key", lambda old: same_weights(Renamed(48, 48), old)),
        "attention.self.key",
    ),
    "no bias": (no_bias, "output.dense"),
}


def same_weights(new, old):
    new.load_state_dict(old.state_dict())
    return new


@pytest.fixture
def changed(pair):
    """Makes (transformers' model, ours), both changed in the same way, with the same weights again; where asked, with
    transformers' in float64 before them."""

    def make(change, exact=False, **fields):
        theirs, ours = pair(**fields)
        ours(IDS)  # so that the look at the modules was taken already
        models = [in_float64(theirs), theirs, ours] if exact else [theirs, ours]
        for model in models:
            seeds.restart(7)
            change(model.encoder.layer[1])
        if exact:
            models[0].double()
        return models

    return make


@pytest.mark.parametrize("way", THEIRS)
@torch.no_grad()
def test_transformers_forward_runs(changed, way):
    change, reason = THEIRS[way]
    if way == "float64 inside":
        _, ours = changed(change)
        assert reason in ours.view()
        return
    try:
        theirs, ours = changed(change)
        theirs(IDS, attention_mask=MASK)
    except RuntimeError:  # transformers 4 and narrow heads
        with pytest.raises(RuntimeError):
            run(ours)
        return
    finally:
        torch._dynamo.reset()
    got, told = run(ours)
    (operation, backend, why) = told[0]
    assert (operation, backend) == ("BertModel", "transformers")
    assert reason in why
    same_states(got, theirs)
    assert reason in bertfast.explain(ours, {"input_ids": IDS})


@pytest.mark.parametrize("way", MODULES)
@pytest.mark.parametrize("train", [False, True])
def test_stand_ins_are_called_with_rows(changed, way, train):
    """Gradients too; only the changed operation loses its fusion."""
    change, place = MODULES[way]
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    exact, theirs, ours = (model.train(train) for model in changed(change, **none, exact=True))
    place, results = f"encoder.layer.1.{place}", []
    for model in (exact, theirs, ours):
        with dispatch.record() as log:
            states = model(IDS, attention_mask=MASK).last_hidden_state[REAL]
        states.sin().sum().backward()
        results.append((states, gradients(model)))
    assert [(c.operation, c.backend) for c in log if "fused" in c.reasons] == [(place, "modules")]
    assert sum(c.operation == "qkv_projection" for c in log) == (1 if "self" in place else 2)
    right, eager, got = results
    near("states and gradients", got, right, eager)


def test_heads_that_were_pruned(changed):
    """Two heads of twelve features, as the module says: still fused."""
    theirs, ours = changed(fewer_heads)
    got, told = run(ours)
    assert told == []
    same_states(got, theirs)


def test_hooks_see_what_they_see_in_transformers(pair):
    seen = []
    for model in pair():
        shapes = []
        for module in model.modules():
            module.register_forward_hook(
                lambda module, _, out, shapes=shapes: shapes.append(
                    (type(module).__name__, getattr(out, "shape", None))
                )
            )
        run(model)
        seen.append(shapes)
    assert seen[0] == seen[1]
    assert ("Linear", (3, 7, 48)) in seen[0]


def test_hooks_outside_cost_nothing(ours):
    model, seen = ours(), []
    want, _ = run(model)
    model.register_forward_hook(lambda module, _, out: seen.append(out[0].shape))
    got, told = run(model)
    assert (told, seen) == ([], [(3, 7, 48)])
    assert got.equal(want)


def test_hook_that_goes_leaves_nothing(ours):
    model = ours()
    want, _ = run(model)
    handle = model.encoder.layer[0].intermediate.register_forward_hook(lambda _, i, out: out * 0)
    assert (run(model)[0] - want).abs().max() > 0.1  # the hook took part
    handle.remove()
    got, told = run(model)
    assert told == []
    assert got.equal(want)


def test_hook_for_all_modules(pair):
    theirs, ours = pair()
    handle = torch_module.register_module_forward_hook(lambda *a: None)
    try:
        got, told = run(ours)
        want, _ = run(theirs)
    finally:
        handle.remove()
    assert told == [("BertModel", "transformers", "a hook is registered for all modules")]
    assert got.equal(want)


@torch.no_grad()
def test_embeddings(pair):
    theirs, ours = pair()
    ours.embeddings.word_embeddings.max_norm = theirs.embeddings.word_embeddings.max_norm = 1.0
    got, told = run(ours)
    assert told == [
        ("embeddings.word_embeddings", "modules", "it is a Embedding"),
    ]
    same_states(got, theirs)
    ours.set_input_embeddings(nn.Embedding(500, 48))
    assert ours(IDS + 400).last_hidden_state.isfinite().all()
    ours.embeddings.LayerNorm = nn.Identity()
    assert run(ours)[1][0][2] == "embeddings.LayerNorm is a Identity"


def test_training_draws_the_same_dropout(ours):
    """A stand-in must not change the masks: rows are dropped by the bits of the fused operations."""
    model = ours().train()
    seeds.restart(1)
    want, _ = run(model)
    seeds.restart(1)
    exact, _ = run(in_float64(model))
    for layer in model.encoder.layer:
        layer.output.dense = same_weights(Renamed(80, 48), layer.output.dense)
    seeds.restart(1)
    got, told = run(model)
    assert [backend for _, backend, _ in told] == ["modules"] * 2
    near("states", got, exact, want)


SMALL = {
    "p": lambda model: model.encoder.layer[0].output.dropout.train().__setattr__("p", 0.5),
    "train": lambda model: model.encoder.layer[1].train(),
    "eps": lambda model: setattr(model.encoder.layer[1].output.LayerNorm, "eps", 1.0),
    "weight": lambda model: setattr(
        model.encoder.layer[1].output.dense, "weight", nn.Parameter(torch.zeros(48, 80))
    ),
    "table": lambda model: model.set_input_embeddings(nn.Embedding(99, 48)),
    "layers": lambda model: setattr(model.encoder, "layer", model.encoder.layer[:1]),
    "pooler": lambda model: setattr(model.pooler.dense, "bias", nn.Parameter(torch.ones(48))),
}


@pytest.mark.parametrize("change", SMALL)
def test_changes_after_a_call_are_seen(ours, change):
    model = ours()
    seeds.restart(2)
    before = model(IDS)
    SMALL[change](model)
    seeds.restart(2)
    after = model(IDS)
    moved = [(a - b).abs().max() for a, b in zip(after[:2], before[:2], strict=True)]
    assert max(moved) > 1e-3  # far beyond what rounding does
    fresh = copy.deepcopy(model)
    seeds.restart(2)
    assert not differing(fresh(IDS), after)


@torch.no_grad()
def test_activation_that_is_a_module(ours):
    model = ours()
    want, _ = run(model)
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.GELU()
    got, told = run(model)
    assert told == []
    assert got.equal(want)
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.GELU("tanh")
    got, told = run(model)
    assert told == [("linear_gelu", "torch", "hidden_act is not gelu")]
    in_torch = in_float64(model)
    near("states", got, run(in_torch)[0], run(in_torch.float())[0])
    del model.encoder.layer[0].intermediate.intermediate_act_fn
    model.encoder.layer[0].intermediate.intermediate_act_fn = lambda x: x
    assert run(model)[1][0][2].endswith("intermediate_act_fn is a function")


ASKED = {
    "output_attentions": ({"output_attentions": True}, "output_attentions is given"),
    "4-D mask": (
        {"attention_mask": torch.ones(3, 1, 7, 7, dtype=torch.bool).tril()},
        "attention_mask has 4 dimensions",
    ),
    "cross attention": (
        {"encoder_hidden_states": torch.ones(3, 2, 48)},
        "encoder_hidden_states is given",
    ),
    "causal": ({"is_causal": True}, "is_causal is given"),
}


@pytest.mark.parametrize("asked", ASKED)
@torch.no_grad()
def test_arguments_that_only_transformers_knows(pair, asked):
    theirs, ours = pair()
    arguments, reason = ASKED[asked]
    given = {"input_ids": IDS, "attention_mask": MASK, **arguments}
    try:
        want = theirs(**given)
    except Exception as error:  # this release does not know it
        with pytest.raises(type(error)):
            ours(**given)
        return
    with dispatch.record() as log:
        got = ours(**given)
    assert log[0][:3] == ("BertModel", "forward", "transformers")
    assert reason in log[0].reasons["fused"]
    assert not differing(got, want)


def test_decoders_and_other_attention_run_in_transformers(ours):
    model = ours(is_decoder=True)
    assert run(model)[1][0][2] == "it is a decoder"
    model = ours()
    model.config._attn_implementation = "somebody's own"
    assert model.view() == 'attn_implementation is "somebody\'s own"'


def test_a_reason_is_logged_once(ours, caplog):
    model = ours()
    engine._SAID.clear()
    with caplog.at_level(logging.WARNING, "bertfast"):
        for _ in range(2):
            model(IDS, output_attentions=True)
    assert [r.getMessage() for r in caplog.records if r.name == "bertfast"] == [
        "BertModel runs transformers' own forward: output_attentions is given."
    ]


def test_modes_that_watch(pair):
    theirs, ours = pair()
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for model in (theirs, ours):
        with FlopCounterMode(display=False) as counter:
            model(IDS)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_layer_says_why_it_cannot_run(ours):
    layer = ours().encoder.layer[0]
    layer.intermediate.dense.register_forward_hook(lambda *a: None)
    with pytest.raises(fusion.Unfit, match="intermediate.dense has forward hooks"):
        fusion.layer_view(layer)
    with pytest.raises(bertfast.UnsupportedError, match="cannot run on a packed stream: "):
        layer(torch.ones(1, 2, 48), batch=object())
