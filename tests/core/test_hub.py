"""Finding a checkpoint: directories, the hub's cache, offline mode, and what is fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors

from bertfast.checkpoint.hub import CONFIG_FILES, resolve
from bertfast.checkpoint.reading import read_state_dict
from bertfast.errors import CheckpointError

TENSORS = {"a": torch.ones(1), "b": torch.ones(2)}


@pytest.fixture
def hub_cache(tmp_path):
    """A hub cache that holds some/model in shards, through links to blobs, one of them shared between repositories."""
    repository = tmp_path / "cache" / "models--some--model"
    commit = "a" * 40
    snapshot = repository / "snapshots" / commit
    shared = tmp_path / "cache" / "blobs" / "ab"
    for folder in (snapshot, repository / "refs", repository / "blobs", shared):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    weight_map = {}
    for name, tensor in TENSORS.items():
        weight_map[name] = f"model-{name}.safetensors"
        safetensors.save_file({name: tensor}, str(repository / "blobs" / weight_map[name]))
    index = repository / "blobs" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (repository / "blobs" / "config.json").write_text("{}")
    (repository / "blobs" / "model-b.safetensors").rename(shared / "abc")
    (repository / "blobs" / "model-b.safetensors").symlink_to("../../blobs/ab/abc")
    for blob in (repository / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    return tmp_path / "cache"


def test_hub_id_from_the_cache(hub_cache):
    pytest.importorskip("huggingface_hub")
    folder = resolve("some/model", cache_dir=hub_cache, local_files_only=True)
    got = read_state_dict(folder)
    assert {name: tensor.tolist() for name, tensor in got.items()} == {"a": [1], "b": [1, 1]}


def test_hub_id_while_offline(tmp_path, hub_cache, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("some/model", cache_dir=hub_cache).parent.name == "snapshots"
    with pytest.raises(
        CheckpointError,
        match=r"'other/model' is no directory here.*not in the local cache.*HF_HUB_OFFLINE",
    ):
        resolve("other/model", cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="directory or a model id"):
        resolve("not a model!", cache_dir=tmp_path)


def test_only_needed_files_are_fetched(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(hub_id, *, allow_patterns, **options):
        asked.append((hub_id, allow_patterns, options["revision"]))
        if len(asked) == 3:
            safetensors.save_file(TENSORS, str(tmp_path / "model.safetensors"))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("some/model", revision="v1") == tmp_path
    (first, patterns, revision), (_, again, _) = asked
    assert (first, revision) == ("some/model", "v1")
    assert "model.safetensors" in patterns
    assert not any("bin" in pattern for pattern in patterns)
    assert "pytorch_model.bin" in again  # there were no safetensors
    resolve("some/model")
    assert len(asked) == 3
    resolve("some/model", allow_patterns=CONFIG_FILES)
    assert asked[3][1] == ["config.json"]


@pytest.mark.parametrize("name", ["./none", "/none/model", "~/none", "a/b/c", "", Path("none")])
def test_paths_that_do_not_exist(name):
    with pytest.raises(CheckpointError, match="expected a checkpoint directory, there is none"):
        resolve(name)


def test_directories_and_files(tmp_path):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="got a file"):
        resolve(tmp_path / "file")
