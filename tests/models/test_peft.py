"""PEFT: adapters on our classes do what they do on transformers', and LoRA's run on the packed stream."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainingArguments

import bertfast
from harness import near, seeds
from models.ecosystem import (
    collate,
    examples,
    gradients,
    in_float64,
    pair,
    ragged,
    same_calls,
    same_gradients,
    same_output,
    same_weights,
    unlabelled,
)
from models.recorded import Recorded

peft = pytest.importorskip("peft", reason="peft is not installed (extra: test)")

HEADS = {"BertForSequenceClassification": "SEQ_CLS", "BertForMaskedLM": None}
CONFIGS = {  # name -> (its class, arguments, the way that our model goes)
    "LoRA": ("LoraConfig", {"r": 4, "target_modules": ["query", "value"]}, "modules"),
    "LoRA, all-linear": ("LoraConfig", {"r": 2, "target_modules": "all-linear"}, "modules"),
    "LoRA with bias": (
        "LoraConfig",
        {"r": 4, "target_modules": ["query", "dense"], "bias": "all"},
        "modules",
    ),
    "DoRA": (
        "LoraConfig",
        {"r": 4, "target_modules": ["key", "value"], "use_dora": True},
        "modules",
    ),
    "LoRA of word embeddings": (
        "LoraConfig",
        {"r": 4, "target_modules": ["word_embeddings", "query"]},
        "modules",
    ),
    "IA3": (
        "IA3Config",
        {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]},
        "modules",
    ),
    "LoRA, pooler and classifier trained": (
        "LoraConfig",
        {"r": 4, "target_modules": ["query"], "modules_to_save": ["pooler", "classifier"]},
        "modules",
    ),
    "VeRA": ("VeraConfig", {"r": 4, "target_modules": ["query", "value"]}, "modules"),
    "LN tuning": ("LNTuningConfig", {"target_modules": r".*layer.*LayerNorm"}, "modules"),
    "LN tuning, embeddings too": (
        "LNTuningConfig",
        {"target_modules": ["LayerNorm"]},
        "transformers",
    ),
}
QUERY = {"target_modules": ["query", "value"]}
MORE = {  # in the long suite
    "LoHa": ("LoHaConfig", QUERY, "modules"),
    "LoKr": ("LoKrConfig", QUERY, "modules"),
    "OFT": ("OFTConfig", {**QUERY, "oft_block_size": 4, "r": 0}, "modules"),
    "BOFT": ("BOFTConfig", {**QUERY, "boft_block_size": 4}, "modules"),
    "HRA": ("HRAConfig", QUERY, "modules"),
    "FourierFT": ("FourierFTConfig", {**QUERY, "n_frequency": 20}, "modules"),
    "AdaLoRA": ("AdaLoraConfig", {**QUERY, "total_step": 10}, "modules"),
    "VB-LoRA": ("VBLoRAConfig", {**QUERY, "vector_length": 8, "num_vectors": 16}, "modules"),
    "MiSS": ("MissConfig", {**QUERY, "r": 8}, "modules"),
    "RoAd": ("RoadConfig", {**QUERY, "group_size": 16}, "modules"),
    "trainable tokens": (
        "TrainableTokensConfig",
        {"target_modules": ["word_embeddings"], "token_indices": [3, 5, 7, 9]},
        "modules",
    ),
}
ADAPTERS = [*CONFIGS, *(pytest.param(name, marks=pytest.mark.ecosystem_long) for name in MORE)]
PROMPTS = {
    "prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 5}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 5, "encoder_hidden_size": 96}),
}


def adapted(model, kind, fields, task=None):
    """A PEFT model whose adapters do something."""
    seeds.restart(5)
    model = peft.get_peft_model(model, getattr(peft, kind)(task_type=task, **copy.copy(fields)))
    generator = seeds.generator(6)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad and "classifier" not in name:
                noise = torch.empty_like(parameter).normal_(0, 0.1, generator=generator)
                parameter.add_(noise)
    return model


def step(model, batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output


@pytest.mark.tool("PEFT", "{adapter}: outputs and gradients")
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters(name, adapter, way):
    kind, fields, expected = {**CONFIGS, **MORE}[adapter]
    if "pooler" in adapter and name == "BertForMaskedLM":
        expected = "modules"  # it has no pooler
    theirs, ours = (adapted(model, kind, fields, HEADS[name]) for model in pair(name))
    same_calls(theirs, ours, way, expected, name)


@pytest.mark.tool("PEFT LoRA", "leaves are called on the packed stream, all else is fused")
@pytest.mark.parametrize("name", HEADS)
def test_packed(name, way):
    """Each query is called once, with the real tokens in one row."""
    _, fields, _ = CONFIGS["LoRA"]
    ours = adapted(pair(name)[1], "LoraConfig", fields, HEADS[name]).train()
    batch, seen = ragged(name), []
    tokens = int(batch["attention_mask"].sum())
    leaf = type(ours.base_model.model.bert.encoder.layer[0].attention.self.query)
    forward = leaf.forward
    leaf.forward = lambda self, x, *a, **k: seen.append(x.shape) or forward(self, x, *a, **k)
    try:
        with way("modules") as log:
            step(ours, batch)
    finally:
        leaf.forward = forward
    assert seen == [(1, tokens, 48)] * 4  # query and value of two layers
    called = [choice.operation for choice in log if choice.backend == "modules"]
    assert sorted(called) == sorted(
        f"encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")
    )
    fused = {choice.operation for choice in log if choice.backend != "modules"}
    assert fused >= {"embedding", "attention", "linear_layernorm", "linear_gelu"}


@pytest.mark.tool("PEFT", "{prompt}: outputs and gradients")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts(prompt, way):
    """Four batches, and a wide encoder of the prompt: else eager torch's error is a matter of luck."""
    name, (kind, fields) = "BertForSequenceClassification", PROMPTS[prompt]
    theirs, ours = (adapted(model, kind, fields, "SEQ_CLS") for model in pair(name))

    def run(model):
        found = []
        for seed in range(4):
            batch = ragged(name, seed=seed)
            del batch["token_type_ids"]
            found.append((step(model, batch), gradients(model)))
        return found

    with way("fused"):
        got = run(ours)
    near("outputs and gradients", got, run(in_float64(theirs)), run(theirs))


@pytest.mark.tool("PEFT LoRA", "merge_and_unload, disable_adapter, two adapters")
def test_merge(way):
    name, (kind, fields, _) = "BertForMaskedLM", CONFIGS["LoRA"]
    theirs, ours = (adapted(model, kind, fields).eval() for model in pair(name))
    batch = unlabelled(ragged(name))
    for model in (theirs, ours):
        seeds.restart(8)
        fields = {"r": 2, "target_modules": ["key"], "init_lora_weights": False}
        model.add_adapter("second", peft.LoraConfig(**fields))
    with torch.no_grad():
        for active in ("second", "default"):
            for model in (theirs, ours):
                model.set_adapter(active)
            with way("modules"):
                got = ours(**batch)
            same_output(got, theirs, batch)
        want, exact = theirs(**batch), in_float64(theirs)
        with ours.disable_adapter(), theirs.disable_adapter():
            moved = theirs(**batch).logits - want.logits
            assert moved.abs().max() > 1e-3  # far beyond what rounding does
            same_output(ours(**batch), theirs, batch)
        merged = ours.merge_and_unload()
        assert type(merged) is bertfast.BertForMaskedLM
        same_weights(merged, theirs.merge_and_unload())
        with way("fused"):
            got = merged(**batch)
        same_output(got, theirs.base_model.model, batch, exact)


@pytest.mark.tool("PEFT LoRA", "an adapter saved by one class is loaded by the other")
@pytest.mark.parametrize("saver", [0, 1], ids=["transformers", "bertfast"])
def test_save_and_load(saver, way, tmp_path):
    name, (kind, fields, _) = "BertForSequenceClassification", CONFIGS["LoRA"]
    saved = adapted(pair(name)[saver], kind, fields, "SEQ_CLS").eval()
    saved.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(pair(name)[1 - saver], tmp_path).eval()
    batch = unlabelled(ragged(name))
    with torch.no_grad(), way("modules"):
        same_output(loaded(**batch), saved, batch)


@pytest.mark.tool("PEFT LoRA", "transformers Trainer, gradient checkpointing too")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", HEADS)
def test_trainer(name, checkpointing, way, tmp_path):
    kind, fields, _ = CONFIGS["LoRA"]
    known = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    option = "activation_checkpointing" if known else "gradient_checkpointing"
    found = []
    theirs, ours = (adapted(model, kind, fields, HEADS[name]) for model in pair(name))
    for model in (in_float64(theirs), theirs, ours):
        arguments = TrainingArguments(
            *(str(tmp_path),),
            **{option: checkpointing},
            max_steps=3,
            logging_steps=1,
            learning_rate=1e-2,
            adam_epsilon=1e-3,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            seed=seeds.seed(),
        )
        run = Recorded(model, arguments, collate, train_dataset=examples(name))
        with way("modules") if model is ours else torch.enable_grad():
            run.train()
        found.append((run.losses, model.state_dict()))
    exact, eager, got = found
    near("losses and weights", got, exact, eager)


@pytest.mark.tool("PEFT LoRA", "gradient checkpointing computes layers twice, packed")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, way):
    name, (kind, fields, _) = "BertForSequenceClassification", CONFIGS["LoRA, all-linear"]
    models = [adapted(model, kind, fields, "SEQ_CLS").train() for model in pair(name)]
    for model in models:
        base = model.base_model.model
        enable = getattr(
            base, "activation_checkpointing_enable", base.gradient_checkpointing_enable
        )
        enable({"use_reentrant": reentrant})
    exact, batch = in_float64(models[0]), ragged(name)
    with way("modules") as log:
        got = step(models[1], batch)
    near("output", got, step(exact, batch), step(models[0], batch))
    same_gradients(models[1], models[0], exact, least=20)
    attention = [choice for choice in log if choice[:2] == ("attention", "forward")]
    assert len(attention) == 2 * 2


@pytest.mark.tool("gradient checkpointing", "with dropout: the same masks in both computations")
@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "LoRA"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_dropout_twice(adapters, reentrant, way):
    """Its bits are others than transformers', so with is compared with without."""
    name, fields = "BertForSequenceClassification", {"hidden_dropout_prob": 0.1}
    found = []
    for checkpointing in (False, True):
        model = base = pair(name, **fields, attention_probs_dropout_prob=0.1)[1]
        if adapters:
            lora = {"r": 4, "target_modules": ["query", "dense"], "lora_dropout": 0.2}
            model = adapted(model, "LoraConfig", lora, "SEQ_CLS")
        if checkpointing:
            enable = "activation_checkpointing_enable"
            enable = getattr(base, enable, base.gradient_checkpointing_enable)
            enable({"use_reentrant": reentrant})
        model.train()
        seeds.restart(3)
        with way("modules" if adapters or checkpointing else "fused"):
            step(model, ragged(name))
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for key, want in found[0].items():
        assert found[1][key].equal(want), key


@pytest.mark.tool("transformers add_adapter", "LoRA without a PEFT model around")
def test_add_adapter(way, monkeypatch):
    from transformers.integrations import peft as theirs

    # 5.24 asks for peft 0.22 by its number, and works with 0.21 too
    monkeypatch.setattr(theirs, "MIN_PEFT_VERSION", "0.18.0")
    name = "BertForMaskedLM"
    models = pair(name)
    for model in models:
        seeds.restart(7)
        fields = {"r": 4, "target_modules": ["query", "dense"], "init_lora_weights": False}
        model.add_adapter(peft.LoraConfig(**fields))
        model.train()
    exact, batch = in_float64(models[0]), ragged(name)
    with way("modules"):
        step(models[1], batch)
    for model in (exact, models[0]):
        step(model, batch)
    same_gradients(models[1], models[0], exact, least=8)
    assert all("lora_" in key for key in gradients(models[1]))
    for model in models:
        model.disable_adapters()
    with way("modules"):
        got = models[1].eval()(**batch)
    same_output(got, models[0].eval(), batch)


@pytest.mark.tool("bertfast.optimize", "a live PEFT model, and back")
def test_optimize(way):
    name, (kind, fields, _) = "BertForSequenceClassification", CONFIGS["LoRA"]
    model = adapted(pair(name)[0], kind, fields, "SEQ_CLS").eval()
    batch = unlabelled(ragged(name))
    with torch.no_grad():
        want = model(**batch)
        assert len(bertfast.optimize(model).switched) == 2
        with way("modules"):
            got = model(**batch)
        bertfast.restore(model)
        assert torch.equal(model(**batch).logits, want.logits)
        same_output(got, model, batch)
