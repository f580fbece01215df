"""from_pretrained and save_pretrained with their arguments, dtypes, old configurations, copies and pickles."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bertfast
from harness import seeds
from models.ecosystem import (
    HEADS,
    pair,
    ragged,
    same_output,
    same_weights,
    theirs_of,
    unlabelled,
)

NAME = "BertForSequenceClassification"


def both(folder, name: str = NAME, **arguments):
    """(transformers' model, ours) by from_pretrained with the same arguments."""
    return tuple(
        getattr(module, name).from_pretrained(folder, **copy.copy(arguments))
        for module in (transformers, bertfast)
    )


def same_models(theirs, ours, way, name: str = NAME, expected: str = "fused"):
    """Weights, dtypes and outputs are transformers'."""
    same_weights(ours, theirs)
    batch = unlabelled(ragged(name))
    with torch.no_grad(), way(expected):
        got = ours.eval()(**batch)
    with torch.no_grad():
        same_output(got, theirs.eval(), batch)


@pytest.fixture
def folder(tmp_path):
    theirs_of(NAME).save_pretrained(tmp_path)
    return tmp_path


ARGUMENTS = {
    "none": {},
    "attn_implementation=eager": {"attn_implementation": "eager"},
    "attn_implementation=sdpa": {"attn_implementation": "sdpa"},
    "dtype=float64": {"dtype": torch.float64},
    "dtype=auto": {"dtype": "auto"},
    "torch_dtype=float64": {"torch_dtype": torch.float64},
    "device_map=cpu": {"device_map": "cpu"},
    "device_map of the root": {"device_map": {"": "cpu"}},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "use_safetensors": {"use_safetensors": True},
    "local_files_only": {"local_files_only": True},
    "num_labels": {"num_labels": 5, "ignore_mismatched_sizes": True},
    "a field of the config": {"layer_norm_eps": 1e-3},
    "output_hidden_states": {"output_hidden_states": True},
}


@pytest.mark.tool("from_pretrained", "its arguments")
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(arguments, folder, way):
    seeds.restart(0)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder, **arguments)
    seeds.restart(0)
    ours = bertfast.BertForSequenceClassification.from_pretrained(folder, **arguments)
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.dtype == theirs.dtype
    same_models(theirs, ours, way)


@pytest.mark.tool("from_pretrained", "state_dict, config, key_mapping, output_loading_info")
def test_more_arguments(folder, way):
    weights = theirs_of(NAME, initializer_range=0.5).state_dict()
    weights = {key: value * 0.5 for key, value in weights.items()}
    config = transformers.BertConfig.from_pretrained(folder)
    kinds = [getattr(module, NAME) for module in (transformers, bertfast)]
    models = [kind.from_pretrained(None, config=config, state_dict=weights) for kind in kinds]
    same_models(*models, way)
    assert torch.equal(models[1].classifier.bias, weights["classifier.bias"])
    file = folder / "model.safetensors"
    tensors = load_file(file)
    renamed = {key.replace("bert.", "mine."): value for key, value in tensors.items()}
    del renamed["classifier.bias"]
    save_file({**renamed, "extra": torch.ones(2)}, file, {"format": "pt"})
    found = both(folder, key_mapping={"^mine": "bert"}, output_loading_info=True)
    (theirs, want), (ours, got) = found
    assert got == want
    assert got["missing_keys"] == {"classifier.bias"}
    assert got["unexpected_keys"] == {"extra"}
    same_weights(ours.bert, theirs.bert)
    assert torch.equal(ours.classifier.weight, tensors["classifier.weight"])


@pytest.mark.tool("from_pretrained", "subfolder, variant, shards, pickled weights")
@pytest.mark.parametrize(
    ("saved", "given"),
    [
        ({"variant": "fp16"}, {"variant": "fp16"}),
        ({"max_shard_size": "20KB"}, {}),
        ({}, {"subfolder": "inner"}),
        ({"max_shard_size": "20KB", "variant": "x"}, {"variant": "x"}),
    ],
    ids=["variant", "shards", "subfolder", "shards of a variant"],
)
@pytest.mark.parametrize("saver", [0, 1], ids=["transformers", "bertfast"])
def test_files(saver, saved, given, way, tmp_path):
    inner = tmp_path / given.get("subfolder", "")
    model = pair(NAME)[saver]
    model.save_pretrained(inner, **saved)
    if "max_shard_size" in saved:
        assert len(list(inner.glob("*.safetensors"))) > 3
    loaded = both(tmp_path, **given)
    same_models(*loaded, way)
    same_weights(loaded[1], model)


@pytest.mark.tool("from_pretrained", "pytorch_model.bin")
def test_pickled(folder, way):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    same_models(*both(folder), way)


@pytest.mark.tool("save_pretrained", "its arguments: the files are transformers'")
def test_save_arguments(tmp_path):
    theirs, ours = pair("BertForMaskedLM")
    calls = []

    def save(tensors, path, **kwargs):
        calls.append(sorted(tensors))
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)

    weights = {key: value * 2 for key, value in ours.state_dict().items()}
    for index, model in enumerate((theirs, ours)):
        place = tmp_path / str(index)
        model.save_pretrained(place / "plain")
        model.save_pretrained(place / "other", is_main_process=False)
        model.save_pretrained(place / "function", save_function=save)
        model.save_pretrained(place / "dict", state_dict=dict(weights))
        model.save_pretrained(place / "variant", variant="x", max_shard_size="30KB")
    files = [
        sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        for root in (tmp_path / "0", tmp_path / "1")
    ]
    assert files[0] == files[1]
    if calls:
        assert calls[0] == calls[1]
    for name in files[0]:
        first, second = (tmp_path / root / name for root in ("0", "1"))
        if name.endswith(".safetensors"):
            assert first.read_bytes() == second.read_bytes(), name
        elif name.endswith("config.json"):
            assert json.loads(first.read_text()) == json.loads(second.read_text())
    saved = load_file(tmp_path / "1" / "dict" / "model.safetensors")
    assert torch.equal(saved["cls.predictions.bias"], weights["cls.predictions.bias"])


@pytest.mark.tool("push_to_hub", "a stand-in of the hub gets transformers' files")
def test_push_to_hub(monkeypatch):
    from transformers import modeling_utils
    from transformers.utils import hub

    class Api:
        def create_repo(self, name, **kwargs):
            return SimpleNamespace(repo_id=name)

    def upload(self, working_dir, repo_id, *args, **kwargs):
        pushed.append((repo_id, sorted(path.name for path in Path(working_dir).iterdir())))

    pushed = []
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
    card = SimpleNamespace(save=lambda path: None)
    for module in (hub, modeling_utils):
        monkeypatch.setattr(module, "hf_api", Api, raising=False)
        monkeypatch.setattr(module, "create_repo", Api().create_repo, raising=False)
        monkeypatch.setattr(module, "create_and_tag_model_card", lambda *a, **k: card)
    for model in pair(NAME):
        model.push_to_hub("me/model", token="none")
    assert pushed[0] == pushed[1]
    assert "model.safetensors" in pushed[1][1]


@pytest.mark.tool("from_pretrained", "weights of one dtype under a config of another")
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("said", ["float16", "float32", None])
@pytest.mark.parametrize("given", [{}, {"dtype": "auto"}, {"dtype": torch.float32}], ids=str)
def test_dtypes(stored, said, given, folder):
    """Which dtype a model has after loading is transformers' rule."""
    path, config = folder / "model.safetensors", folder / "config.json"
    save_file({k: v.to(stored) for k, v in load_file(path).items()}, path, {"format": "pt"})
    fields = json.loads(config.read_text())
    fields.pop("dtype", None)
    config.write_text(json.dumps(fields if said is None else {**fields, "dtype": said}))
    theirs, ours = both(folder, **given)
    assert ours.dtype == theirs.dtype
    same_weights(ours, theirs)


@pytest.mark.tool(
    "from_pretrained", "an old config: gradient_checkpointing, position_embedding_type"
)
def test_legacy_config(folder, way):
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    fields |= {"gradient_checkpointing": True, "position_embedding_type": "absolute"}
    fields |= {"transformers_version": "4.8.2", "_name_or_path": "x"}
    config.write_text(json.dumps(fields))
    theirs, ours = both(folder)
    assert ours.is_gradient_checkpointing == theirs.is_gradient_checkpointing
    assert ours.config.to_diff_dict() == theirs.config.to_diff_dict()
    expected = "modules" if ours.is_gradient_checkpointing else "fused"
    same_models(theirs, ours, way, expected=expected)


@pytest.mark.tool("from_pretrained", "one head's checkpoint in another head")
@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_other_heads(name, tmp_path):
    theirs_of("BertForPreTraining").save_pretrained(tmp_path)
    (theirs, want), (ours, got) = both(tmp_path, name, output_loading_info=True)
    assert got == want
    same_weights(ours.base_model, theirs.base_model)


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_state(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = type(model)(model.config)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh.eval()


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch,
    "state_dict": through_state,
}


@pytest.mark.tool("copies", "deepcopy, pickle, torch.save, state_dict")
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["BertForMaskedLM", NAME])
@pytest.mark.parametrize("optimized", [False, True], ids=["ours", "optimized"])
def test_copies(how, name, optimized, way):
    theirs, ours = pair(name)
    if optimized:
        ours = copy.deepcopy(theirs)
        bertfast.optimize(ours)
    made = COPIES[how](ours)
    assert type(made) is getattr(bertfast, name)
    same_models(theirs, made, way, name)
    with torch.no_grad():
        made.bert.embeddings.word_embeddings.weight.add_(1.0)
    same_weights(ours, theirs)
    if name == "BertForMaskedLM":
        assert made.cls.predictions.decoder.weight is made.get_input_embeddings().weight


@pytest.mark.tool("PreTrainedModel", "methods that tell or change something")
def test_methods(way):
    theirs, ours = pair("BertForMaskedLM")
    for call in (
        lambda m: m.get_memory_footprint(),
        lambda m: m.num_parameters(only_trainable=True),
        lambda m: m.config.to_diff_dict(),
        lambda m: m.config.to_json_string(),
        lambda m: (m.device, m.dtype, m.framework if hasattr(m, "framework") else None),
        lambda m: [name for name, _ in m.named_modules()],
        lambda m: m.dummy_inputs["input_ids"].tolist(),
        lambda m: m.can_generate(),
        lambda m: m.get_input_embeddings().weight.shape,
    ):
        assert call(ours) == call(theirs)
    for model in (theirs, ours):
        seeds.restart(2)
        model.resize_token_embeddings(110)
    assert ours.config.vocab_size == theirs.config.vocab_size == 110
    same_models(theirs, ours, way, "BertForMaskedLM")
    for model in (theirs, ours):
        seeds.restart(2)
        model.init_weights()
        model.tie_weights()
    same_weights(ours, theirs)


@pytest.mark.tool("AutoModel", "from_config and register")
def test_auto(way, folder, monkeypatch):
    mapping = transformers.AutoModelForSequenceClassification._model_mapping
    monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    auto = transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(folder)
    auto.register(transformers.BertConfig, bertfast.BertForSequenceClassification, exist_ok=True)
    ours = auto.from_pretrained(folder)
    assert type(ours) is bertfast.BertForSequenceClassification
    same_models(theirs, ours, way)
    assert type(auto.from_config(theirs.config)) is type(ours)


@pytest.mark.tool("from_pretrained", "the real MiniLM-L6")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_minilm(dtype, minilm, way):
    theirs, ours = both(minilm, "BertModel", dtype=dtype)
    same_weights(ours, theirs)
    exact = transformers.BertModel.from_pretrained(minilm, dtype=torch.float64)
    batch = ragged()
    batch["token_type_ids"] %= 2
    with torch.no_grad():
        with way("fused"):
            got = ours(**batch)
        same_output(got, theirs, batch, exact)
