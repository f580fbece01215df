"""Weights that are no plain tensors (quantized, pruned, parametrized) and modules in the place of others: rows of the
packed stream where a module is Linear-like, else transformers' own forward."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import bertfast
from harness import near, seeds
from models.ecosystem import (
    in_float64,
    pair,
    ragged,
    same_calls,
    same_output,
    unlabelled,
)

NAME = "BertForSequenceClassification"


def of_torchao(kind: str):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return getattr(quantization, kind)()


def int4():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from torchao.quantization.granularity import PerGroup

    return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16))


def qat():
    qat = pytest.importorskip("torchao.quantization.qat", reason="torchao is not installed")
    weights = qat.IntxFakeQuantizeConfig(torch.int4, group_size=16)
    return qat.QATConfig(weight_config=weights, step="prepare")


def dequantized(model):
    """A copy in float64, whose weights are what the quantized ones stand for."""
    made = copy.deepcopy(model)
    for module in made.modules():
        weight = module._parameters.get("weight")
        if weight is not None and type(weight) is not nn.Parameter:
            module.weight = nn.Parameter(weight.dequantize(), weight.requires_grad)
        if hasattr(module, "weight_fake_quantizer"):
            module.weight_fake_quantizer = InFloat32(module.weight_fake_quantizer)
    return made.double()


class InFloat32(nn.Module):
    """What knows float32 alone, of numbers in float64 that float32 holds."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.float()).double()


WEIGHTS = {
    "int8": lambda: of_torchao("Int8WeightOnlyConfig"),
    "float8": lambda: of_torchao("Float8WeightOnlyConfig"),
    "int4": int4,
    "int4, rounded in training": qat,
}


@pytest.mark.tool("torchao", "weights in {kind}")
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", ["BertForMaskedLM", NAME])
def test_torchao(kind, name, way):
    config = WEIGHTS[kind]()
    from torchao.quantization import quantize_

    theirs, ours = pair(name)
    plain = copy.deepcopy(theirs)
    for model in (theirs, ours):
        quantize_(model, copy.deepcopy(config))
    exact = dequantized(theirs)
    batch = unlabelled(ragged(name))
    with torch.no_grad():
        with way("modules"):
            got = ours(**batch)
        same_output(got, theirs, batch, exact)
        moved = exact(**batch).logits - in_float64(plain)(**batch).logits
        assert moved.abs().max() > 1e-3  # far beyond what rounding does
    if "training" in kind:
        same_calls(theirs, ours, way, "modules", name, exact)


@pytest.mark.tool("torchao", "LoRA over int8 weights")
def test_lora_over_torchao(way):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: test)")
    config = of_torchao("Int8WeightOnlyConfig")
    from torchao.quantization import quantize_

    fields, models = {"r": 2, "target_modules": ["query", "dense"]}, []
    for model in pair(NAME):
        quantize_(model, copy.deepcopy(config))
        seeds.restart(3)
        model = peft.get_peft_model(model, peft.LoraConfig(**fields))
        generator = seeds.generator(4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros, with which an adapter does nothing
                torch.nn.init.normal_(parameter, 0, 0.1, generator=generator)
        models.append(model)
    same_calls(*models, way, "modules", exact=dequantized(models[0]))


def torchao_dynamic(model):
    config = of_torchao("Int8DynamicActivationInt8WeightConfig")
    from torchao.quantization import quantize_

    quantize_(model, config)
    return model


def torch_dynamic(model):
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip(f"quantized engines here: {torch.backends.quantized.supported_engines}")
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


@pytest.mark.tool(
    "int8 activations", "{quantize.__name__}: an error against fp32 of at most transformers'"
)
@pytest.mark.parametrize("quantize", [torchao_dynamic, torch_dynamic], ids=lambda f: f.__name__)
def test_rounded_activations(quantize, way):
    """A last bit before rounding is a step of int8 after it: transformers' own padding moves its results by as much.
    torch.ao has one scale for all rows, of which ours has none at padding."""
    theirs, ours = pair(NAME)
    exact = copy.deepcopy(theirs)
    theirs, ours = quantize(theirs), quantize(ours)
    batch = unlabelled(ragged(NAME, 48))
    with torch.no_grad():
        with way("modules"):
            got = ours(**batch).logits
        want, their = exact.double()(**batch).logits, theirs(**batch).logits
    assert not torch.equal(their.double(), want)
    near("logits", got, want, their)


@pytest.mark.tool("torchao", "quantization_config of from_pretrained")
def test_torchao_config(way, tmp_path):
    config = of_torchao("Int8WeightOnlyConfig")
    theirs, _ = pair(NAME)
    theirs.save_pretrained(tmp_path)
    models = [
        getattr(module, NAME).from_pretrained(
            tmp_path, quantization_config=transformers.TorchAoConfig(config), device_map="cpu"
        )
        for module in (transformers, bertfast)
    ]
    batch = unlabelled(ragged(NAME))
    with torch.no_grad():
        with way("modules"):
            got = models[1](**batch)
        same_output(got, models[0], batch, dequantized(models[0]))
        assert not torch.equal(models[0](**batch).logits, theirs(**batch).logits)


def pruned(model):
    for module in model.modules():
        if type(module) is nn.Linear:
            prune.l1_unstructured(module, "weight", 0.3)


def weight_normed(model):
    for layer in model.bert.encoder.layer:
        parametrizations.weight_norm(layer.intermediate.dense)
        parametrizations.weight_norm(layer.attention.self.key)


def orthogonal(model):
    parametrizations.orthogonal(model.bert.encoder.layer[1].attention.self.query)


def spectral(model):
    seeds.restart(4)
    parametrizations.spectral_norm(model.bert.encoder.layer[0].output.dense)


def old_weight_norm(model):
    torch.nn.utils.weight_norm(model.bert.encoder.layer[0].attention.self.value)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrized_norm(model):
    parametrize.register_parametrization(
        model.bert.encoder.layer[0].output.LayerNorm, "weight", Half()
    )


CHANGES = {
    "prune": pruned,
    "parametrizations.weight_norm": weight_normed,
    "parametrizations.orthogonal": orthogonal,
    "parametrizations.spectral_norm": spectral,
    "weight_norm by a hook": old_weight_norm,
    "parametrize of a LayerNorm": parametrized_norm,
}


@pytest.mark.tool("torch.nn.utils", "{change}")
@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_weights(change, way):
    theirs, ours = pair(NAME)
    exact = in_float64(theirs)
    for model in (exact, theirs, ours):
        CHANGES[change](model)
        model.train()
    if change == "parametrizations.spectral_norm":  # what it draws for float64 is something else
        exact = in_float64(theirs)
    same_calls(theirs, ours, way, "modules", exact=exact)
    for model in (exact, theirs, ours):  # one step, after which weights are made anew
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
        model.zero_grad()
    same_calls(theirs, ours, way, "modules", exact=exact)


@pytest.mark.tool("torch.nn.utils", "prune.remove, remove_parametrizations: fused again")
def test_made_permanent(way):
    models = pair(NAME)
    for model in models:
        linear = model.bert.encoder.layer[0].attention.self.query
        prune.l1_unstructured(linear, "weight", 0.5)
        prune.remove(linear, "weight")
        dense = model.bert.encoder.layer[1].output.dense
        parametrize.register_parametrization(dense, "weight", Half())
        parametrize.remove_parametrizations(dense, "weight")
    same_calls(*models, way, "fused")


@pytest.mark.tool("head pruning", "narrower query, key, value, output: {told}")
@pytest.mark.parametrize("told", ["only the tensors", "number of heads too"])
def test_fewer_heads(told, way):
    """transformers reads the number of heads off the tensors; ours is told by num_attention_heads, else gives way."""
    models = pair(NAME)
    for model in models:
        attention = model.bert.encoder.layer[0].attention
        for part in ("query", "key", "value"):
            linear = getattr(attention.self, part)
            linear.weight = nn.Parameter(linear.weight[:24].detach().clone())
            linear.bias = nn.Parameter(linear.bias[:24].detach().clone())
            linear.out_features = 24
        dense = attention.output.dense
        dense.weight = nn.Parameter(dense.weight[:, :24].detach().clone())
        if told == "number of heads too":
            attention.self.num_attention_heads, attention.self.all_head_size = 2, 24
    same_calls(*models, way, "fused" if told == "number of heads too" else "transformers")


@pytest.mark.tool("torch.nn", "{part}")
@pytest.mark.parametrize(
    "part",
    [
        "a subclass of Linear",
        "RMSNorm",
        "another activation",
        "a frozen encoder",
        "another word table",
        "another classifier",
    ],
)
def test_replaced(part, way):
    class Loud(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1.5

    models, expected = pair(NAME), "transformers"
    for model in models:
        layer = model.bert.encoder.layer[0]
        if part == "a subclass of Linear":
            layer.output.dense.__class__ = Loud
        elif part == "RMSNorm":
            layer.output.LayerNorm = nn.RMSNorm(48)
        elif part == "another activation":
            layer.intermediate.intermediate_act_fn = nn.SiLU()
            expected = "fused"
        elif part == "a frozen encoder":
            model.bert.requires_grad_(False)
            expected = "fused"
        elif part == "another word table":
            words = model.bert.embeddings.word_embeddings
            model.set_input_embeddings(nn.Embedding.from_pretrained(words.weight * 2, False))
            expected = "fused"
        else:
            model.classifier = nn.Sequential(nn.Linear(48, 3, bias=False), nn.Identity())
            nn.init.ones_(model.classifier[0].weight)
            expected = "fused"
    same_calls(*models, way, expected)
