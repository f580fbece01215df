"""`optimize` and `restore`: classes change in place, nothing else does, and what is left is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import bertfast
from bertfast import dispatch
from bertfast.models.optimize import CLASSES
from harness import near, seeds
from models.ecosystem import differing, in_float64

IDS = seeds.token_ids(3, 7)
MASK = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] * 5 + [0] * 2])
SIZES = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}
HEADS = [kind for kind in CLASSES if kind.__name__.startswith("BertFor")]


def config(**fields):
    return transformers.BertConfig(**{**SIZES, **fields}, attn_implementation="eager")


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_heads_there_and_back(kind):
    model = kind(config()).eval()
    seen = []
    model.register_forward_hook(lambda *a: seen.append(1))
    parameters, names = list(model.parameters()), list(model.state_dict())
    ids = IDS[:, None].repeat(1, 2, 1) if "Choice" in kind.__name__ else IDS
    exact, want = in_float64(model)(ids), model(ids)
    seen.clear()
    told = bertfast.optimize(model)
    assert told.switched == [
        ("", f"bertfast.models.heads.{kind.__name__}"),
        ("bert", "bertfast.models.bert.BertModel"),
    ]
    assert told.left == []
    assert isinstance(model, getattr(bertfast, kind.__name__))
    assert isinstance(model, kind)
    with dispatch.record() as log:
        got = model(ids)
    assert {choice.operation for choice in log} >= {"embedding", "encoder"}
    near("output", got, exact, want)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == names
    assert len(seen) == 1
    bertfast.restore(model)
    assert type(model) is kind
    assert all(type(m).__module__.partition(".")[0] != "bertfast" for m in model.modules())
    assert not differing(model(ids), want)


@torch.no_grad()
def test_outputs_that_transformers_records_are_still_recorded():
    """transformers 5 finds by a model's class what it can record."""
    model = transformers.BertModel(config()).eval()
    bertfast.optimize(model)
    asked = {"output_attentions": True, "output_hidden_states": True}
    output = model(IDS, attention_mask=MASK, **asked)
    assert [len(output.attentions), len(output.hidden_states)] == [2, 3]
    again = model(IDS, attention_mask=MASK)  # the hooks that it left are inactive
    with dispatch.record() as log:
        model(IDS, attention_mask=MASK)
    assert "transformers" not in {choice.backend for choice in log}
    exact = in_float64(model)(IDS, attention_mask=MASK)
    near("states", *(o[0][MASK.bool()] for o in (again, exact, output)))


class Derived(transformers.BertModel):
    """Somebody's own."""


def test_what_is_left_and_why():
    roberta = transformers.RobertaConfig(**SIZES, max_position_embeddings=20)
    decoder = transformers.BertConfig(**SIZES, is_decoder=True)
    holder = nn.ModuleDict(
        {
            "derived": Derived(config()),
            "other": transformers.RobertaModel(roberta),
            "decoder": transformers.BertLMHeadModel(decoder),
        }
    )
    told = bertfast.optimize(SimpleNamespace(model=holder, number=3))
    reasons = {name: reason for name, _, reason in told.left}
    assert "derived" in reasons["model.derived"]
    assert reasons["model.other"] == "not BERT"
    assert reasons["model.decoder"] == "bertfast has no such head"
    assert told.switched == [("model.decoder.bert", "bertfast.models.bert.BertModel")]
    assert "left      model.other: transformers." in str(told)
    assert type(holder["derived"]) is Derived
    assert str(bertfast.optimize(nn.Linear(2, 2))) == "nothing of transformers' BERT found"


def test_what_holds_no_model():
    with pytest.raises(bertfast.ArgumentError, match="model: expected a module, or an object that"):
        bertfast.optimize({"a": 1})
