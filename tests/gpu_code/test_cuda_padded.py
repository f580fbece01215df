"""A padded batch whose mask only the GPU reads, on the emulated card: its rows are those of the packed batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import BertConfig

import bertfast
from bertfast import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    dispatch,
)
from bertfast.core import encode
from bertfast.models import engine
from gpu_code import recording
from gpu_code.recording import MODEL, poison
from harness import seeds


@pytest.fixture
def device(request, monkeypatch):
    with torch.no_grad(), recording.card(request, monkeypatch) as card:
        yield card


def _model(kind=BertModel, dtype=torch.bfloat16, **options):
    seeds.restart(3)
    return kind(BertConfig(**{**MODEL, **options})).to(dtype).eval()


RAGGED = (7, 3, 0, 1, 5)


def _batch(lengths=RAGGED, length=7, left=False):
    """Ids, mask and segments; ids of padding are outside of the table."""
    ids = torch.randint(1, 50, (len(lengths), length), generator=seeds.generator(len(lengths)))
    columns, counts = torch.arange(length), torch.tensor(lengths)[:, None]
    mask = columns >= length - counts if left else columns < counts
    return {
        "input_ids": ids.where(mask, 10**6),
        "attention_mask": mask.long(),
        "token_type_ids": (columns * 2 > counts).long().expand(ids.shape) * mask,
    }


def _packed(monkeypatch, run):
    """What comes out where the batch is packed first, as on a CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "encode_padded", lambda *_: None)
        return run()


def _unasked(monkeypatch):
    """Nothing may ask how many tokens are real."""

    def refuse(*_):
        raise AssertionError("the mask was read")

    monkeypatch.setattr(engine, "make_batch", refuse)


def _same(found, expected):
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_outputs(device, monkeypatch, dtype, left):
    """Bits of the packed batch, as every product here has one way to cut its sums; zeros at padding and for a row
    without tokens. What lies beyond the real rows is NaN.
    """
    model, batch = _model(dtype=dtype), _batch(left=left)
    with dispatch.batch_invariant():
        expected = _packed(monkeypatch, lambda: model(**batch))
        _unasked(monkeypatch)
        for graphs in (False, True, True, True):
            with bertfast.graphs(graphs):
                _same(model(**batch), expected)
            poison(device)
    assert not expected.last_hidden_state[batch["attention_mask"] == 0].any()
    assert not expected.pooler_output[RAGGED.index(0)].any()
