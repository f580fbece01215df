"""`bertfast.explain` leaves the model, its configuration and the random state as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bertfast
from bertfast import BertConfig, BertForSequenceClassification

IDS = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
BATCHES = {
    "classes": {"labels": torch.tensor([0, 1])},
    "several": {"labels": torch.zeros(2, 3)},
    "labels that do not fit": {"labels": torch.tensor([0, 9])},
    "transformers' forward": {"labels": torch.tensor([0, 1]), "output_attentions": True},
}


class Wrapped(nn.Module):
    """As DDP and PEFT hold a model; one with a running mean."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.norm = model, nn.BatchNorm1d(3)

    def forward(self, **batch):
        output = self.inner(**batch)
        return {"logits": self.norm(output.logits)}


def model(train: bool) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    return BertForSequenceClassification(config).train(train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("wrap", [lambda m: m, Wrapped], ids=["plain", "wrapped"])
@pytest.mark.parametrize("name", BATCHES)
def test_nothing_changes(name, wrap, train):
    whole = wrap(model(train)).train(train)
    inner = getattr(whole, "inner", whole)
    config, state = copy.deepcopy(vars(inner.config)), copy.deepcopy(whole.state_dict())
    flags = [module.training for module in whole.modules()]
    random, grad = torch.get_rng_state(), torch.is_grad_enabled()
    batch = {"input_ids": IDS, "attention_mask": (IDS > 0).long(), **BATCHES[name]}
    if name == "labels that do not fit":
        with pytest.raises(bertfast.ArgumentError):
            bertfast.explain(whole, batch)
    else:
        assert len(bertfast.explain(whole, batch).splitlines()) > 1
    assert vars(inner.config) == config
    assert inner.config.problem_type is None
    for key, value in whole.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert all(parameter.grad is None for parameter in whole.parameters())
    if name != "transformers' forward":  # which leaves hooks of its own, as every call of it does
        assert not any(module._forward_hooks for module in whole.modules())
    assert [module.training for module in whole.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled() == grad
