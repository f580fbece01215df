"""BertConfig reads and writes Hugging Face's config.json and refuses what is no BERT encoder."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from bertfast.config import BertConfig
from bertfast.errors import CheckpointError, ConfigError

TINY = {
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
}


@pytest.fixture
def folder(tmp_path):
    def write(fields, name="config.json"):
        text = fields if isinstance(fields, str) else json.dumps(fields)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


def test_defaults_are_transformers():
    transformers = pytest.importorskip("transformers")
    ours, theirs = BertConfig(), transformers.BertConfig().to_dict()
    # What generation and TensorFlow alone read, in transformers 4, is no field here (a file's value is kept).
    others = {"transformers_version", "tf_legacy_loss", "use_bfloat16"}
    others |= transformers.GenerationConfig().to_dict().keys() - ours.to_dict().keys()
    for name in theirs.keys() - others:
        assert getattr(ours, name) == theirs[name], name
    assert ours.layer_norm_eps == 1e-12
    assert ours.position_embedding_type == "absolute"
    assert ours.pruned_heads == {}


def test_base_and_large():
    base, large = BertConfig.base(vocab_size=21128), BertConfig.large(num_labels=3)
    assert (base.vocab_size, base.hidden_size, base.num_hidden_layers) == (21128, 768, 12)
    sizes = (large.hidden_size, large.num_hidden_layers, large.num_attention_heads)
    assert (*sizes, large.intermediate_size, large.num_labels) == (1024, 24, 16, 4096, 3)
    base.validate()
    large.validate()


def test_transformers_reads_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = BertConfig(
        **TINY,
        dtype=torch.bfloat16,
        id2label={0: "no", 1: "yes"},
        architectures=["BertModel"],
        odd={"a": [1]},
    )
    ours.save_pretrained(tmp_path / "new")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "new")
    assert type(theirs) is transformers.BertConfig
    for name in (
        *TINY,
        "dtype",
        "id2label",
        "label2id",
        "architectures",
        "odd",
        "layer_norm_eps",
        "pad_token_id",
    ):
        assert getattr(theirs, name) == getattr(ours, name), name
    theirs.save_pretrained(tmp_path / "back")
    back = BertConfig.from_pretrained(tmp_path / "back")
    back.transformers_version = None
    assert back == ours


def test_unknown_keys_are_kept(folder, tmp_path):
    # Some named like methods or arguments: a file may have any keys.
    odd = {
        "gradient_checkpointing": False,
        "custom": {"x": [1, None]},
        "to_dict": 1,
        "self": 2,
        "cls": 3,
        "_extra": 4,
    }
    config = BertConfig.from_pretrained(folder({**TINY, **odd, "transformers_version": "4.8.2"}))
    assert config.custom == {"x": [1, None]}
    config.another = "set later"
    config.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {
        **odd,
        "another": "set later",
        "transformers_version": "4.8.2",
    }.items() <= written.items()
    assert BertConfig.from_pretrained(tmp_path / "out") == config
    with pytest.raises(AttributeError, match="nothing"):
        _ = config.nothing


def test_torch_dtype_is_the_old_name_of_dtype(folder):
    assert (
        BertConfig.from_pretrained(folder({**TINY, "torch_dtype": "float16"})).dtype
        is torch.float16
    )
    assert BertConfig(torch_dtype="float16", dtype="bfloat16").dtype is torch.bfloat16
    with pytest.raises(ConfigError, match=r"dtype: expected .* got 'fp12'"):
        BertConfig(dtype="fp12")


def test_labels(folder, caplog):
    config = BertConfig.from_dict({"id2label": {"0": "a", "1": "b", "2": "c"}})
    assert config.num_labels == 3
    assert config.id2label[2] == "c"
    assert config.label2id == {"a": 0, "b": 1, "c": 2}
    config.num_labels = 3
    assert config.id2label[2] == "c"
    config.num_labels = 4
    assert config.label2id["LABEL_3"] == 3
    assert BertConfig(num_labels=5).num_labels == 5
    path = folder({**TINY, "id2label": {"0": "a", "1": "b", "2": "c"}})
    assert BertConfig.from_pretrained(path, num_labels=7).id2label[6] == "LABEL_6"
    assert not caplog.records
    assert BertConfig(num_labels=5, id2label={0: "a"}).num_labels == 1
    assert "num_labels is 5" in caplog.text
    for wrong in (
        {"id2label": {"x": "a"}},
        {"id2label": 3},
        {"id2label": {"0": []}},
        {"num_labels": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            BertConfig(**wrong)


def test_equality_copies_and_repr():
    config = BertConfig(**TINY, odd=1)
    assert config == BertConfig(**TINY, odd=1)
    assert config != BertConfig(**TINY, odd=2)
    assert config != BertConfig(**{**TINY, "vocab_size": 98}, odd=1)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    other = BertConfig.from_dict(config.to_dict(), hidden_act="relu")
    assert (other.hidden_act, config.hidden_act) == ("relu", "gelu")
    assert '"vocab_size": 99' in repr(config)
    config.update({"vocab_size": 7})
    assert config.vocab_size == 7


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model_type", "roberta", "expected 'bert', got 'roberta'"),
        ("hidden_size", 30, "a multiple of 4, got 30"),
        ("hidden_size", -32, "got -32"),
        ("vocab_size", 0, "from 1"),
        ("num_hidden_layers", 10**12, "from 0 to 4096"),
        ("num_attention_heads", "4", "got '4'"),
        ("intermediate_size", 37.0, "got 37.0"),
        ("type_vocab_size", True, "got True"),
        ("max_position_embeddings", None, "got None"),
        ("hidden_act", "mish", "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh"),
        ("hidden_act", ["gelu"], "one of gelu"),
        ("hidden_dropout_prob", 1.0, "below 1"),
        ("attention_probs_dropout_prob", -0.1, "from 0"),
        ("classifier_dropout", "x", "None or a number"),
        ("layer_norm_eps", float("nan"), "finite"),
        ("initializer_range", float("inf"), "finite"),
        ("pad_token_id", 99, "below vocab_size 99"),
        ("problem_type", "multi", "regression"),
        ("is_decoder", True, "transformers"),
        ("is_encoder_decoder", True, "transformers"),
        ("add_cross_attention", True, "transformers"),
        ("position_embedding_type", "relative_key", "transformers below version 5"),
        ("chunk_size_feed_forward", 4, "Set it to 0"),
        ("pruned_heads", {"0": [1]}, "pruned"),
        ("quantization_config", {"bits": 8}, "unquantized"),
    ],
)
def test_impossible_fields(folder, field, value, says):
    fields = {**TINY, field: value}
    with pytest.raises(ConfigError) as caught:
        BertConfig(**fields).validate()
    assert str(caught.value).startswith(f"{field}: expected ")
    assert says in str(caught.value)
    with pytest.raises(ConfigError, match=r"config\.json: " + field):
        BertConfig.from_pretrained(folder(fields))


def test_missing_sizes(folder):
    path = folder({"model_type": "bert", "vocab_size": 99, "hidden_size": 32})
    with pytest.raises(
        ConfigError, match="num_hidden_layers, num_attention_heads, intermediate_size missing"
    ):
        BertConfig.from_pretrained(path)
    # A single file is read as transformers reads it.
    assert BertConfig.from_json_file(path / "config.json").num_hidden_layers == 12


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"x"', "\x00", "[" * 100_000, '{"a":' * 400 + "1" + "}" * 400]
)
def test_unreadable_files(folder, text):
    with pytest.raises(ConfigError, match=r"config\.json: expected"):
        BertConfig.from_pretrained(folder(text))


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: expected a file"):
        BertConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a checkpoint directory"):
        BertConfig.from_pretrained(tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    config = BertConfig(**TINY)
    config.save_pretrained(tmp_path)
    config.vocab_size = 5
    config.odd = torch.ones(1)
    with pytest.raises(ConfigError, match="odd: expected a value that JSON can hold, got Tensor"):
        config.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).vocab_size == 99
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
