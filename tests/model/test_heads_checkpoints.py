"""Checkpoints of the heads: both ways with transformers, old names, omitted decoders, and one head's in another."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import torch as safetensors

import bertfast
from bertfast import BertConfig, CheckpointError
from bertfast.checkpoint import read_state_dict

NAMES = (
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
IDS = torch.randint(1, 99, (2, 7))
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
BIAS, DECODER = "cls.predictions.bias", "cls.predictions.decoder"


def given(name):
    choices = name == "BertForMultipleChoice"
    return {k: v[None] if choices else v for k, v in (("input_ids", IDS), ("attention_mask", MASK))}


@torch.no_grad()
def outputs(model, name):
    """The logits, those at real tokens where there is one a token."""
    output = model.eval()(**given(name), return_dict=False)
    return [x[MASK.bool()] if x.shape[:2] == MASK.shape else x for x in output]


def assert_close(got, want):
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_both_ways(head_pair, tmp_path, name):
    """transformers reads what bertfast writes, and the other way, with nothing missing or left over."""
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    theirs, ours = head_pair(name, **names)
    want = outputs(ours, name)
    ours.save_pretrained(tmp_path / "ours")
    loaded, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.architectures == [name]
    assert loaded.config.id2label == names["id2label"]
    assert_close(outputs(loaded, name), want)
    theirs.save_pretrained(tmp_path / "theirs")
    back = type(ours).from_pretrained(tmp_path / "theirs")
    assert not back.loading_report
    assert not back.training
    assert back.config.label2id == names["label2id"]
    assert_close(outputs(back, name), want)
    written, other = read_state_dict(tmp_path / "ours"), read_state_dict(tmp_path / "theirs")
    assert sorted(written) == sorted(other)
    assert all(written[key].equal(other[key]) for key in other)


@pytest.mark.parametrize("name", NAMES[:2])
def test_untied(head_pair, tmp_path, name):
    """Both biases are written; of two different ones the decoder's counts, as in transformers 5; one will do."""
    theirs, ours = head_pair(name, tie_word_embeddings=False)
    ours.save_pretrained(tmp_path / "ours")
    assert {BIAS, f"{DECODER}.bias", f"{DECODER}.weight"} <= set(read_state_dict(tmp_path / "ours"))
    want = outputs(ours, name)
    assert_close(outputs(type(theirs).from_pretrained(tmp_path / "ours"), name), want)
    torch.nn.init.normal_(theirs.get_parameter(BIAS))  # transformers 5 makes no use of it
    theirs.save_pretrained(tmp_path / "theirs")
    back = type(ours).from_pretrained(tmp_path / "theirs")
    assert not back.loading_report
    assert_close(outputs(back, name), want)
    ours.load_state_dict(theirs.state_dict())
    assert_close(outputs(ours, name), want)
    weights = read_state_dict(tmp_path / "ours")
    del weights[f"{DECODER}.bias"]  # transformers 4
    safetensors.save_file(weights, tmp_path / "ours" / "model.safetensors")
    back = type(ours).from_pretrained(tmp_path / "ours")
    assert not back.loading_report
    assert_close(outputs(back, name), want)


@pytest.fixture
def old_checkpoint(head, tmp_path):
    """A masked LM as the first releases wrote it: LayerNorm.gamma and .beta, no decoder, a buffer too many."""
    model = head("BertForMaskedLM")
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in model.state_dict().items()
        if not name.startswith(DECODER)
    }
    weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
    safetensors.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    return model, tmp_path


def test_old_names(old_checkpoint):
    model, folder = old_checkpoint
    back = bertfast.BertForMaskedLM.from_pretrained(folder)
    assert not back.loading_report
    assert back.cls.predictions.decoder.weight is back.get_input_embeddings().weight
    for name, value in model.state_dict().items():
        assert back.get_parameter(name).equal(value)
    half = bertfast.BertForMaskedLM.from_pretrained(folder, dtype="bfloat16")
    assert half.cls.predictions.decoder.weight is half.get_input_embeddings().weight
    assert half(IDS).logits.dtype == torch.bfloat16
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForMaskedLM.from_pretrained(folder)
    assert_close(outputs(back, "BertForMaskedLM"), outputs(theirs, "BertForMaskedLM"))


def test_another_heads_checkpoint(old_checkpoint, caplog):
    """The report names what is new and what was not used; what is new has start weights."""
    _, folder = old_checkpoint
    model = bertfast.BertForSequenceClassification.from_pretrained(folder, num_labels=3)
    report = model.loading_report
    pooler = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
    assert report.missing == (*pooler, "classifier.weight", "classifier.bias")
    assert len(report.unexpected) == 5
    assert all(name.startswith("cls.predictions.") for name in report.unexpected)
    line = caplog.records[-1].getMessage()
    assert line.startswith("BertForSequenceClassification from ")
    assert (
        "newly initialised: bert.pooler.dense.weight, bert.pooler.dense.bias, classifier.w" in line
    )
    assert "in the checkpoint but not used: cls.predictions." in line
    assert 0.01 < model.classifier.weight.std() < 0.03
    assert (model.classifier.bias == 0).all()
    assert model.classifier.weight.shape == (3, 48)
    model.save_pretrained(folder / "three")
    again = bertfast.BertForSequenceClassification.from_pretrained(folder / "three")
    assert not again.loading_report
    assert again.num_labels == 3
    two = {"num_labels": 2, "ignore_mismatched_sizes": True}
    with pytest.raises(
        CheckpointError, match=r"classifier.weight: expected \[2, 48\], got \[3, 48\]"
    ):
        bertfast.BertForTokenClassification.from_pretrained(folder / "three", num_labels=2)
    other = bertfast.BertForTokenClassification.from_pretrained(folder / "three", **two)
    assert {name for name, _, _ in other.loading_report.mismatched} == {
        "classifier.weight",
        "classifier.bias",
    }
    pretraining = bertfast.BertForPreTraining.from_pretrained(folder)
    relation = ("cls.seq_relationship.weight", "cls.seq_relationship.bias")
    assert pretraining.loading_report.missing == (*pooler, *relation)


def test_encoders_checkpoint(ours, tmp_path):
    """The names of a plain encoder have no prefix; and an encoder takes a head's checkpoint."""
    encoder = ours()
    encoder.save_pretrained(tmp_path)
    model = bertfast.BertForMaskedLM.from_pretrained(tmp_path)
    assert model.loading_report.missing[0] == BIAS
    assert len(model.loading_report.missing) == 5
    assert model.bert.encoder.state_dict().keys() == encoder.encoder.state_dict().keys()
    assert model.cls.predictions.decoder.weight.equal(encoder.embeddings.word_embeddings.weight)
    assert (model.cls.predictions.bias == 0).all()
    model.save_pretrained(tmp_path / "head")
    back = bertfast.BertModel.from_pretrained(tmp_path / "head", add_pooling_layer=False)
    assert not back.loading_report
    torch.testing.assert_close(back(IDS)[0], encoder(IDS)[0])


def test_options(head, tmp_path):
    head("BertForSequenceClassification").save_pretrained(tmp_path)
    model = bertfast.BertForSequenceClassification.from_pretrained(tmp_path, check_finite=True)
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    with pytest.raises(bertfast.ArgumentError, match="classifier.weight: expected finite"):
        model(IDS)
    problem = {"problem_type": "multi_label_classification", "id2label": {0: "a", 1: "b", 2: "c"}}
    config = BertConfig.from_pretrained(tmp_path, **problem)
    model = bertfast.BertForSequenceClassification(config)
    model(IDS, labels=torch.rand(2, 3)).loss.backward()
    model.save_pretrained(tmp_path / "several")
    written = json.loads((tmp_path / "several" / "config.json").read_text())
    assert written["problem_type"] == "multi_label_classification"
    assert written["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert written["label2id"] == {"a": 0, "b": 1, "c": 2}
