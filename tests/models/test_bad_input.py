"""Wrong arguments of the model: an error that names the argument, what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from bertfast import ArgumentError, UnsupportedError, dispatch
from harness import seeds

IDS = seeds.token_ids(2, 5)
ONES = torch.ones(2, 5)
STARTS = torch.tensor([0, 2, 5], dtype=torch.int32)
ROW = {"input_ids": IDS[:1], "cu_seq_lens_q": STARTS}


def put(value, like=IDS):
    """`like` with `value` somewhere inside."""
    result = like.clone()
    result[1, 3] = value
    return result


WRONG = {
    "id above": ({"input_ids": put(99)}, r"input_ids: expected values in \[0, 99\), got 99"),
    "id negative": ({"input_ids": put(-1)}, r"input_ids: .*got -1"),
    "ids of one dimension": (
        {"input_ids": IDS[0]},
        r"input_ids: .*\[batch, length\], got int64 \[5\]",
    ),
    "ids of float": ({"input_ids": IDS.float()}, "input_ids: .*int64 or int32.*float32"),
    "ids of bool": ({"input_ids": IDS > 3}, "input_ids: .*got bool"),
    "a list": ({"input_ids": IDS.tolist()}, "input_ids: .*got list"),
    "ids elsewhere": (
        {"input_ids": IDS.to("meta")},
        "input_ids: expected a tensor on cpu.*got meta",
    ),
    "no columns": (
        {"input_ids": IDS[:, :0]},
        r"input_ids: expected at least one column, got int64 \[2, 0\]",
    ),
    "too long": (
        {"input_ids": torch.ones(1, 41).long()},
        "input_ids: expected at most 40 columns.*got 41",
    ),
    "embeds too long": (
        {"inputs_embeds": torch.ones(1, 41, 48)},
        "inputs_embeds: expected at most 40",
    ),
    "neither": ({}, "input_ids, inputs_embeds: expected exactly one of the two, got neither"),
    "both": (
        {"input_ids": IDS, "inputs_embeds": torch.ones(2, 5, 48)},
        "exactly one of the two, got both",
    ),
    "embeds of another width": (
        {"inputs_embeds": torch.ones(2, 5, 47)},
        r"inputs_embeds: .*48\], got .*47\]",
    ),
    "embeds of another dtype": (
        {"inputs_embeds": torch.ones(2, 5, 48).double()},
        "inputs_embeds: .*float64",
    ),
    "segment above": (
        {"input_ids": IDS, "token_type_ids": put(3, IDS * 0)},
        r"token_type_ids: .*\[0, 3\), got 3",
    ),
    "segments of another shape": (
        {"input_ids": IDS, "token_type_ids": IDS[:, :4]},
        r"token_type_ids: .*\[2, 5\]",
    ),
    "segments of float": ({"input_ids": IDS, "token_type_ids": ONES}, "token_type_ids: .*float32"),
    "position above": (
        {"input_ids": IDS, "position_ids": put(40, IDS * 0)},
        r"position_ids: .*\[0, 40\), got 40",
    ),
    "position negative": (
        {"input_ids": IDS, "position_ids": put(-2, IDS * 0)},
        "position_ids: .*got -2",
    ),
    "positions of three rows": (
        {"input_ids": IDS, "position_ids": torch.ones(3, 5).long()},
        "position_ids: ",
    ),
    "mask of another shape": (
        {"input_ids": IDS, "attention_mask": ONES[:, :4]},
        r"attention_mask: .*\[2, 4\]",
    ),
    "mask of one dimension": (
        {"input_ids": IDS, "attention_mask": ONES[0]},
        r"attention_mask: .*\[5\]",
    ),
    "additive mask of two": (
        {"input_ids": IDS, "attention_mask": put(-1e4, ONES)},
        "attention_mask: .*negative",
    ),
    "mask elsewhere": (
        {"input_ids": IDS, "attention_mask": ONES.to("meta")},
        "attention_mask: .*got meta",
    ),
    "packed, two rows": (
        {"input_ids": IDS, "cu_seq_lens_q": STARTS},
        r"input_ids: expected \[1, total\].*2 rows",
    ),
    "packed with mask": (
        {**ROW, "attention_mask": ONES[:1]},
        "attention_mask: expected None with cu_seq_lens_q",
    ),
    "packed, short": (
        {**ROW, "cu_seq_lens_q": STARTS[:2]},
        "cu_seq_lens_q: .*from 0 to 5.*ending at 2",
    ),
    "packed, falling": (
        {**ROW, "cu_seq_lens_q": torch.tensor([0, 4, 2, 5])},
        "cu_seq_lens_q: starts that rise|rise from",
    ),
    "packed, no start": (
        {**ROW, "cu_seq_lens_q": STARTS[:0]},
        "cu_seq_lens_q: expected at least its 0",
    ),
    "packed, float": ({**ROW, "cu_seq_lens_q": STARTS.float()}, "cu_seq_lens_q: expected an int32"),
    "packed, maximum": ({**ROW, "max_length_q": 2}, "max_length_q: expected at least 3.*got 2"),
    "packed, other keys": (
        {**ROW, "cu_seq_lens_k": STARTS * 2},
        "cu_seq_lens_k: expected the same as cu_seq_lens_q",
    ),
    "packed, other key maximum": (
        {**ROW, "max_length_q": 3, "max_length_k": 4},
        "max_length_k: expected 3",
    ),
    "lengths without starts": (
        {"input_ids": IDS, "max_length_q": 3},
        "cu_seq_lens_q: .*max_length_q is given, got None",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_argument(ours, case):
    arguments, message = WRONG[case]
    with pytest.raises(ArgumentError, match=message):
        ours()(**arguments)


def test_packed_batch_where_only_transformers_runs(ours):
    """transformers would attend across the sequences of a packed row."""
    with pytest.raises(UnsupportedError, match="cu_seq_lens_q: .*output_attentions is given.*Give"):
        ours()(**ROW, output_attentions=True)


def test_what_says_nothing_is_ignored(ours):
    nothing = {"past_key_values": None, "use_cache": True, "head_mask": None, "anything": None}
    tokenizers = {"special_tokens_mask": IDS, "length": IDS, "overflow_to_sample_mapping": IDS}
    with dispatch.record() as log:
        assert ours()(IDS, **nothing, **tokenizers)[0].shape == (2, 5, 48)
    assert {choice.backend for choice in log} <= {"cpu", "reference", "by layers"}


def test_positional_arguments(ours):
    model = ours()
    with pytest.raises(TypeError, match="multiple values for argument 'input_ids'"):
        model(IDS, input_ids=IDS)
    with pytest.raises(TypeError, match="at most"):
        model(*[IDS] * 30)


def test_padding_may_hold_anything(ours):
    model, mask = ours(), put(0, ONES)
    assert model(put(-100), mask)[0].equal(model(IDS, mask)[0])


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("embeddings.LayerNorm.bias", "embeddings.LayerNorm.bias"),
        ("encoder.layer.1.output.dense.weight", "encoder.layer.1.output.dense.weight"),
    ],
)
@pytest.mark.parametrize("prepacked", [False, True])
def test_weights_that_are_not_finite(ours, name, where, prepacked):
    model = ours()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = torch.nan
    if prepacked:
        model.prepack()
    model(IDS)  # off by default
    with pytest.raises(ArgumentError, match=f"{where}: expected finite weights, got 1 of"):
        model(IDS, check_finite=True)


@torch.no_grad()
def test_values_that_overflow(ours):
    model = ours(torch.float16)
    model.encoder.layer[0].output.LayerNorm.weight.fill_(6e4)
    with pytest.raises(ArgumentError, match=r"encoder.layer.0: expected a finite output.*bfloat16"):
        model(IDS, check_finite=True)
    model = ours()
    embeds = torch.randn(1, 3, 48)
    embeds[0, 2, 1] = torch.inf
    with pytest.raises(
        ArgumentError, match="embeddings: expected a finite output, got .* from token 2"
    ):
        model(inputs_embeds=embeds, check_finite=True)
    assert model(IDS, check_finite=True)[0].isfinite().all()
