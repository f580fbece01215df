"""Changes that nobody foresaw: the numbers stay those of transformers' class on the very same object."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.models.bert import modeling_bert

import bertfast
from bertfast import dispatch
from harness import near, seeds
from models.ecosystem import in_float64, real_tokens

IDS = seeds.token_ids(3, 7)
MASK = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] * 5 + [0] * 2])
REAL = MASK.bool()


def outputs(model):
    """Of real tokens, where there is a row a token."""
    seeds.restart(3)
    return real_tokens(model(input_ids=IDS, attention_mask=MASK), MASK)


def same(model, *names):
    """Ours and transformers' outputs (of those names, or all) of one object, by the accuracy check."""
    bertfast.optimize(model)
    got = outputs(model)
    bertfast.restore(model)
    found = got, outputs(in_float64(model)), outputs(model)
    near("output", *({k: v for k, v in o.items() if k in (names or o)} for o in found))


class Tagger(nn.Module):
    """A classifier that reads whole texts, as BiLSTM taggers do."""

    def __init__(self, outputs: int):
        super().__init__()
        self.lstm = nn.LSTM(48, outputs, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def patched_dropout(model):
    model.dropout.forward = lambda x: F.dropout(x, 0.5, True)


class Tripled(modeling_bert.BertOnlyMLMHead):
    def forward(self, sequence_output):
        return 3 * self.predictions(sequence_output)


class OtherHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.product = nn.Linear(48, 5)

    def forward(self, x):
        return self.product(x).cumsum(1)


def activation(kind):
    def change(model):
        for layer in model.base_model.encoder.layer:
            layer.intermediate.intermediate_act_fn = kind()

    return change


CHANGES = {
    "tagger": ("BertForTokenClassification", lambda m: setattr(m, "classifier", Tagger(2))),
    "reader": ("BertForQuestionAnswering", lambda m: setattr(m, "qa_outputs", Tagger(2))),
    "Monte Carlo dropout": ("BertForSequenceClassification", patched_dropout),
    "tripled scores": ("BertForMaskedLM", lambda m: setattr(m, "cls", Tripled(m.config))),
    "another head": ("BertForMaskedLM", lambda m: setattr(m, "cls", OtherHead())),
    "positions": ("BertModel", lambda m: m.embeddings.position_ids.add_(3)),
    "segments": ("BertModel", lambda m: m.embeddings.token_type_ids.fill_(1)),
    "scaling": (
        "BertModel",
        lambda m: [setattr(layer.attention.self, "scaling", 1.0) for layer in m.encoder.layer],
    ),
    "softmax over tokens": ("BertModel", activation(lambda: nn.Softmax(dim=1))),
    "PReLU of features": ("BertModel", activation(lambda: nn.PReLU(7))),
}


@pytest.fixture
def changeable(head, ours):
    def make(name, **fields):
        fields["attn_implementation"] = "eager"
        model = ours(**fields) if name == "BertModel" else head(name, **fields)
        model(IDS, attention_mask=MASK)  # so that a look was taken before the change
        return model

    return make


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_models(changeable, change):
    name, apply = CHANGES[change]
    model = changeable(name)
    if change == "scaling" and not hasattr(model.encoder.layer[0].attention.self, "scaling"):
        pytest.skip("transformers 4 has no such attribute")
    seeds.restart(5)
    apply(model)
    if change == "Monte Carlo dropout":  # on first tokens alone: the same draws
        same(model, "logits")
        return
    if change == "PReLU of features":  # one number a column of the batch, in a [B,S,F]
        assert "is a PReLU" in model.view()
        return
    same(model)


def test_patched_class(changeable, monkeypatch):
    model, plain = changeable("BertModel"), modeling_bert.BertSelfOutput.forward

    def patched(self, hidden_states, input_tensor):
        return plain(self, hidden_states, input_tensor) * 1.5

    monkeypatch.setattr(modeling_bert.BertSelfOutput, "forward", patched)
    assert model.view() == "BertSelfOutput.forward was patched"
    same(model)


def test_stand_in_that_holds_something_else(changeable):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: test)")
    model = changeable("BertForTokenClassification")
    model.classifier = Tagger(2)
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    wrapped = peft.get_peft_model(model, config).eval()
    same(wrapped.base_model.model)


def test_backward_hook_of_a_heads_dropout(changeable):
    model, seen = changeable("BertForSequenceClassification"), []
    model.dropout.register_full_backward_hook(lambda *a: seen.append(1))
    model(IDS, attention_mask=MASK).logits.sum().backward()
    assert seen == [1]


def test_library_module_without_out_features(changeable):
    class Foreign(nn.Module):
        def forward(self, x):
            return x

    Foreign.__module__ = "auto_gptq.nn"
    model = changeable("BertModel")
    model.encoder.layer[0].attention.self.query = Foreign()
    assert "query has None outputs" in model.view()


def test_another_dict(changeable):
    model = changeable("BertModel")
    donor = nn.Linear(48, 48)
    model.encoder.layer[1].attention.output.dense.__dict__ = donor.__dict__
    same(model)


def test_check_finite_where_transformers_runs(changeable):
    model = changeable("BertModel")
    model.encoder.layer[0].register_forward_hook(lambda *a: None)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] = torch.nan
    for options in ({}, {"return_dict": False}):
        with pytest.raises(bertfast.ArgumentError, match=r"layer.1.output.dense.bias: expected"):
            model(IDS, check_finite=True, **options)


def test_old_tuples_and_names(head, ours):
    """The places in transformers 4's tuples, and its old name of a label."""
    config = transformers.BertConfig(**ours().config.to_dict())
    asked = {"return_dict": False, "output_hidden_states": True}
    pair = [kind(config, add_pooling_layer=False).eval() for kind in MODELS]
    shapes = [[len(t) if isinstance(t, tuple) else type(t) for t in m(IDS, **asked)] for m in pair]
    assert shapes[0] == shapes[1]
    pair = [kind(config).eval() for kind in PAIRS]
    label = torch.tensor([0, 1, 1])
    losses = [m(IDS, next_sentence_label=label).loss for m in pair]
    assert (losses[0] is None) == (losses[1] is None)
    tokens = head("BertForTokenClassification")
    tokens.classifier.register_forward_hook(lambda *a: None)
    assert len(tokens(IDS, **asked)) == 2


MODELS = (transformers.BertModel, bertfast.BertModel)
PAIRS = (transformers.BertForNextSentencePrediction, bertfast.BertForNextSentencePrediction)


# What is held between calls


@torch.no_grad()
def test_no_weight_is_kept_alive(changeable):
    model = changeable("BertModel")
    name = "encoder.layer.0.output.dense.weight"
    lent = {n: p * 1.5 for n, p in model.named_parameters()}
    torch.func.functional_call(model, lent, (IDS,))
    gone = weakref.ref(lent[name])
    del lent
    gc.collect()
    assert gone() is None
    model(IDS)
    gone = weakref.ref(model.get_parameter(name))
    model.prepack()
    gc.collect()
    assert gone() is None
    model.unpack()(IDS)
    gone = weakref.ref(model.get_parameter(name))
    bertfast.restore(model)
    model.load_state_dict(dict(model.state_dict()), assign=True)
    gc.collect()
    assert gone() is None


# Freezing changed models


def test_prepack_takes_what_is_fused(changeable):
    model = changeable("BertModel", hidden_act="relu")
    model.encoder.layer[0].intermediate.dense = nn.utils.parametrizations.weight_norm(
        model.encoder.layer[0].intermediate.dense
    )
    want = model(IDS)[0]
    assert model.prepack()(IDS)[0].equal(want)
    model.unpack()
    shared = changeable("BertModel")
    shared.encoder.layer[1] = shared.encoder.layer[0]
    attention = shared.encoder.layer[0].attention.self
    attention.key.weight = attention.query.weight
    want = shared(IDS)[0]
    assert shared.prepack()(IDS)[0].equal(want)
    shared.unpack()
    assert attention.key.weight is attention.query.weight
    assert shared(IDS)[0].equal(want)
    attention.query.register_forward_hook(lambda *a: None)
    with pytest.raises(bertfast.UnsupportedError, match="prepack: .*query has forward hooks"):
        shared.prepack()


def test_fused_still(changeable):
    """None of these looks sends a plain model to transformers."""
    for name in ("BertModel", "BertForTokenClassification", "BertForMaskedLM"):
        with dispatch.record() as log:
            changeable(name)
        assert "transformers" not in {choice.backend for choice in log}
