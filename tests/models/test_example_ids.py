"""Dropout counts by the examples' ids: what an example gives does not depend on the batch that it is in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertfast import ArgumentError, UnsupportedError, dispatch
from harness import seeds

LENGTHS = (9, 4, 17, 1, 12, 6)
EXAMPLES = [seeds.token_ids(1, length)[0] for length in LENGTHS]
NAMES = torch.tensor([7, 2**31 + 3, 1, 2**40, 12, 5])  # ids
SPLIT = ([3, 0, 5], [4, 2, 1])
DROPPING = ("BertForPreTraining", "BertForTokenClassification", "BertForSequenceClassification")


def packed(which):
    lengths = torch.tensor([0, *(LENGTHS[i] for i in which)])
    ids = torch.cat([EXAMPLES[i] for i in which])[None]
    return {"input_ids": ids, "cu_seq_lens_q": lengths.cumsum(0).int(), "example_ids": NAMES[which]}


def padded(which):
    rows = [EXAMPLES[i] for i in which]
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "example_ids": NAMES[which]}


def rows_of(model, make, which):
    """{example: its rows}, from the last hidden states or the first result of a head."""
    inputs = make(which)
    seeds.restart(3)  # of the dropout
    with dispatch.record() as log:
        out = model(**inputs)[0].detach()
    assert "transformers" not in {choice.backend for choice in log}
    if out.dim() == 2:
        return dict(zip(which, out, strict=True))
    rows = out[inputs["attention_mask"].bool()] if make is padded else out[0]
    return dict(zip(which, rows.split([LENGTHS[i] for i in which]), strict=True))


def same_rows(model, make=packed):
    whole = rows_of(model, packed, [0, 1, 2, 3, 4, 5])
    for part in SPLIT:
        for example, rows in rows_of(model, make, part).items():
            assert torch.equal(rows, whole[example]), example
    assert not torch.equal(rows_of(model.eval(), packed, [2])[2], whole[2])  # something drops


class Renamed(nn.LayerNorm):
    """A subclass with LayerNorm's forward: it is called, and operations are fused around it."""


def stand_in(model):
    model.encoder.layer[0].output.LayerNorm.__class__ = Renamed


def checkpoint(model):
    name = "activation_checkpointing_enable"
    getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})


def checkpointed_stand_in(model):
    """Layers are entered through their `__call__`."""
    stand_in(model)
    checkpoint(model)


WAYS = {
    "one call": lambda model: None,
    "one call, computed again": checkpoint,
    "around a module": stand_in,
    "through the layer's call": checkpointed_stand_in,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [packed, padded])
def test_rows_of_the_encoder(head, way, make):
    model = head("BertForPreTraining").bert
    WAYS[way](model)
    same_rows(model.train(), make)


@pytest.mark.parametrize("name", DROPPING)
def test_heads(head, name):
    same_rows(head(name).train())


def test_choices(head):
    """Inputs [batch, choices, length] have ids [batch, choices]."""
    model = head("BertForMultipleChoice").train()
    ids, names = seeds.token_ids(6, 5).view(3, 2, 5), NAMES.view(3, 2)

    def scores(rows):
        seeds.restart(3)
        return model(input_ids=ids[rows], example_ids=names[rows]).logits

    assert torch.equal(torch.cat([scores([2]), scores([0, 1])]), scores([2, 0, 1]))
    with pytest.raises(ArgumentError, match=r"example_ids: expected \[batch, choices\] \[3, 2\]"):
        model(input_ids=ids, example_ids=NAMES)


def test_gradients_of_a_split(head):
    """Of one example the gradient is the same, whatever is beside it in the batch."""
    model, found = head("BertForPreTraining").bert.train(), []
    for which in ([1], [4, 2, 1]):
        model.zero_grad()
        seeds.restart(3)
        inputs = padded(which)
        embeds = model.embeddings.word_embeddings(inputs.pop("input_ids")).detach().requires_grad_()
        model(inputs_embeds=embeds, **inputs)[0][-1, : LENGTHS[1]].sin().sum().backward()
        found.append(embeds.grad[-1, : LENGTHS[1]])
    assert torch.equal(*found)


def test_compiled(ours):
    model = ours(num_hidden_layers=1).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    eager = rows_of(model, padded, SPLIT[0])
    seeds.restart(3)
    out = compiled(**padded(SPLIT[0]))[0].detach()
    for row, example in zip(out, SPLIT[0], strict=True):
        assert torch.equal(row[: LENGTHS[example]], eager[example])


@pytest.mark.parametrize(
    ("make", "ids", "message"),
    [
        (packed, NAMES[:2], r"an int64 tensor \[3\], an id for each sequence, got int64 \[2\]"),
        (padded, NAMES, r"an int64 tensor \[3\], an id for each sequence, got int64 \[6\]"),
        (padded, NAMES[:3].int(), r"got int32 \[3\]"),
        (padded, [1, 2, 3], "got list"),
        (padded, NAMES[:3].to("meta"), "expected a tensor on cpu, as the model is, got meta"),
    ],
)
def test_wrong_ids(ours, make, ids, message):
    with pytest.raises(ArgumentError, match=f"^example_ids: .*{message}"):
        ours()(**{**make(SPLIT[0]), "example_ids": ids})


def test_where_only_transformers_runs(ours):
    with pytest.raises(UnsupportedError, match="example_ids: .*output_attentions is given"):
        ours()(**padded(SPLIT[0]), output_attentions=True)
