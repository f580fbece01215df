"""Prepacked models, and weights that change."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import bertfast
from bertfast import BertModel, UnsupportedError, extension
from bertfast.ops._weights import KeptParameter
from harness import near, seeds
from models.ecosystem import in_float64

IDS = seeds.token_ids(2, 9)
NATIVE = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))


def same(a, b):
    """Whether two state_dicts hold the same bits."""
    return list(a) == list(b) and all(a[name].equal(b[name]) for name in a)


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepack(ours, dtype, tmp_path):
    model = ours(dtype)
    plain, want = copy.deepcopy(model), model(IDS)[0].detach()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert model.train().prepack() is model
    assert model.prepacked
    assert not model.training
    assert model(IDS)[0].equal(want)
    assert not model(IDS)[0].requires_grad
    assert model.num_parameters() == plain.num_parameters()
    assert (model.device, model.dtype) == (torch.device("cpu"), dtype)
    assert same(model.state_dict(), plain.state_dict())
    assert same(
        torch.nn.ModuleList([model]).state_dict(), torch.nn.ModuleList([plain]).state_dict()
    )
    model.save_pretrained(tmp_path)
    assert same(BertModel.from_pretrained(tmp_path).state_dict(), plain.state_dict())
    weight = model.encoder.layer[0].intermediate.dense.weight
    for read in (
        lambda: weight + 1,
        lambda: weight[0],
        lambda: weight.sum(),
        lambda: weight.data_ptr(),
    ):
        with pytest.raises(UnsupportedError, match=r"prepacked.*model.unpack\(\)"):
            read()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.prepacked
        assert copied(IDS)[0].equal(want)
        assert same(copied.unpack().state_dict(), plain.state_dict())
    assert model.unpack() is model
    assert not model.prepacked
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert model(IDS)[0].equal(want)


@NATIVE
@torch.no_grad()
def test_a_forward_asks_python_for_nothing_of_a_prepacked_weight(ours, monkeypatch):
    model = ours().eval().prepack()
    want = model(IDS).pooler_output
    monkeypatch.setattr(KeptParameter, "__torch_function__", None)  # to be called would be an error
    assert model(IDS).pooler_output.equal(want)
    with pytest.raises(TypeError):
        _ = model.encoder.layer[0].intermediate.dense.weight.dtype


@NATIVE
@pytest.mark.parametrize("way", ["train", "to", "load", "parent"])
def test_what_unpacks(ours, way):
    model = ours()
    plain = copy.deepcopy(model)
    holder = torch.nn.ModuleDict({"bert": model.prepack()})
    if way == "train":
        model.train()
    elif way == "to":
        plain = plain.to(torch.float64)
        model.to(torch.float64)
    elif way == "load":
        plain = ours()
        model.load_state_dict(plain.state_dict())
    else:
        holder.train()
    assert not model.prepacked
    assert same(model.state_dict(), plain.state_dict())
    assert model.eval()(IDS)[0].equal(plain.eval()(IDS)[0])


@NATIVE
def test_prepack_keeps_one_copy(ours):
    """What stays of the six products of a layer is the packed form, at most 1.1 times the weights."""
    model = ours(hidden_size=256, intermediate_size=1024)
    weights = {n: p for n, p in model.encoder.named_parameters() if p.dim() == 2}
    size = sum(p.nbytes for p in weights.values())
    with torch.no_grad():
        model(IDS)
    model.prepack()
    kept = [p for n, p in model.encoder.named_parameters() if n in weights]
    assert all(p.is_meta for p in kept)
    assert sum(p.packed.buffer.nbytes for p in kept) <= 1.1 * size


@NATIVE
def test_prepack_that_fails_changes_nothing(ours):
    model = ours(torch.float64)
    with pytest.raises(UnsupportedError, match="float64"):
        model.prepack()
    assert not model.prepacked
    assert model(IDS)[0].isfinite().all()
    mixed = ours()
    mixed.encoder.layer[1].output.double()
    with pytest.raises(UnsupportedError):
        mixed.prepack()
    assert not any(p.is_meta for p in mixed.parameters())


@NATIVE
def test_activation_outside_the_operations_is_not_prepacked(ours):
    model = ours(hidden_act="relu")
    want = model(IDS)[0]
    model.prepack()
    assert not model.encoder.layer[0].intermediate.dense.weight.is_meta
    assert model(IDS)[0].equal(want)


def adamw(**options):
    def step(model):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        torch.optim.AdamW(model.parameters(), lr=0.05, **options).step()

    return step


def two_optimizers(model):
    adamw(fused=True)(model)
    with torch.no_grad():
        model(IDS)
    adamw(foreach=True)(model)


def loads(model):
    model.load_state_dict({name: tensor * 1.25 for name, tensor in model.state_dict().items()})


def moving_average(model):
    for parameter in model.parameters():
        parameter.detach().lerp_(torch.randn_like(parameter), 0.1)


def write_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.25)
        parameter.data.add_(0.01)


def replace_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


@torch.inference_mode()
def inside_inference_mode(model):
    for parameter in model.parameters():
        parameter.mul_(1.25)


CHANGES = {
    "plain": adamw(foreach=False),
    "foreach": adamw(foreach=True),
    "fused": adamw(fused=True),
    "two-optimizers": two_optimizers,
    "load_state_dict": loads,
    "moving-average": moving_average,
    "write-data": write_data,
    "replace-data": replace_data,
    "inference-mode": inside_inference_mode,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_change_are_seen(ours, change):
    """The very next call computes with the new weights, though the model stays in eval mode all the time."""
    model = ours()
    with torch.no_grad():
        before = model(IDS)[0]
        assert model(IDS)[0].equal(before)
        with torch.enable_grad():
            change(model)
        after = model(IDS)[0]
        with bertfast.use_backend("reference"):
            near("states", after, in_float64(model)(IDS)[0], model(IDS)[0])
    assert (after - before).abs().max() > 1e-3  # far beyond what rounding does


def test_explain(ours):
    model = ours()
    table = bertfast.explain(model.train(), {"input_ids": IDS}).splitlines()
    assert table[0].split()[:4] == ["operation", "direction", "backend", "calls"]
    rows = {tuple(line.split()[:2]): line.split()[2:4] for line in table[1:]}
    for operation, calls in {"embedding": 1, "encoder": 1}.items():
        assert rows[operation, "forward"][1] == rows[operation, "backward"][1] == str(calls)
    assert all(p.grad is None for p in model.parameters())
    double = bertfast.explain(model.double().eval(), {"input_ids": IDS})
    assert "backward" not in double
    assert "reference" in double
    assert "float64" in double
