"""Saving: what is written reads back and loads in transformers, tied weights once, all files or none."""

from __future__ import annotations

import os
import resource

import pytest
import torch
from safetensors import torch as safetensors

from bertfast._files import atomic_path, atomic_write
from bertfast.checkpoint import convert_names, read_state_dict, save
from bertfast.config import BertConfig
from bertfast.errors import ArgumentError, CheckpointError


def weights(**extra):
    return {f"layer.{i}.weight": torch.randn(4, i + 1) for i in range(6)} | extra


def same(got, want):
    assert sorted(got) == sorted(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


CONFIG = {
    "vocab_size": 7,
    "hidden_size": 4,
    "num_attention_heads": 1,
    "num_hidden_layers": 0,
    "intermediate_size": 8,
}


@pytest.mark.parametrize("shard", ["5GB", 100])
def test_saved_files_read_back(tmp_path, shard):
    want = {name: tensor.to(torch.bfloat16) for name, tensor in weights().items()}
    save(want, BertConfig(**CONFIG), tmp_path, max_shard_size=shard, architecture="BertModel")
    same(read_state_dict(tmp_path), want)
    config = BertConfig.from_pretrained(tmp_path)
    assert config.dtype is torch.bfloat16
    assert config.architectures == ["BertModel"]
    with safetensors.safe_open(next(tmp_path.glob("model*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        oct(0o666 & ~umask())
    }
    # Another save leaves none of the old files that would be read before, or beside, the new ones.
    other = weights()
    save(other, BertConfig(**CONFIG), tmp_path, max_shard_size="5GB" if shard == 100 else "0.1KB")
    same(read_state_dict(tmp_path), other)
    assert len(list(tmp_path.glob("*.index.json"))) == (0 if shard == 100 else 1)
    assert (tmp_path / "model.safetensors").exists() == (shard == 100)


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_tied_and_shared_tensors(tmp_path):
    words, bias = torch.randn(7, 4), torch.randn(7)
    state_dict = {
        "bert.embeddings.word_embeddings.weight": words,
        "cls.predictions.bias": bias,
        "cls.predictions.decoder.weight": words,
        "cls.predictions.decoder.bias": bias,
    }
    save(state_dict, BertConfig(**CONFIG), tmp_path)
    written = read_state_dict(tmp_path)
    assert set(state_dict) - set(written) == {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }
    save(state_dict, BertConfig(**CONFIG, tie_word_embeddings=False), tmp_path)
    same(read_state_dict(tmp_path), state_dict)
    base = torch.arange(8.0)
    save({"a": base[:6], "b": base[2:].view(2, 3).t()}, BertConfig(**CONFIG), tmp_path)
    same(read_state_dict(tmp_path), {"a": base[:6], "b": base[2:].view(2, 3).t()})


def test_transformers_loads_what_is_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {**CONFIG, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    state_dict = theirs.state_dict()
    same(
        convert_names(read_state_dict(tmp_path / "theirs"), state_dict),
        {n: t for n, t in state_dict.items() if "decoder" not in n},
    )
    ids = torch.tensor([[1, 2, 3]])
    for shard in ("5GB", 300):
        folder = tmp_path / f"ours{shard}"
        save(
            state_dict,
            BertConfig.from_pretrained(tmp_path / "theirs"),
            folder,
            max_shard_size=shard,
        )
        back, info = transformers.BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not any(
            info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        torch.testing.assert_close(back.eval()(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("shard", ["5GB", 100_000])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, shard):
    want = weights()
    save(want, BertConfig(**CONFIG), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (150_000, hard)
    )  # a longer file fails as on a full disk
    try:
        big = weights(small=torch.ones(10_000), big=torch.ones(100_000))
        with pytest.raises(CheckpointError, match=r"cannot be written .* unchanged"):
            save(big, BertConfig(**CONFIG), tmp_path, max_shard_size=shard)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="a: expected a tensor with values"):
        save({"a": torch.ones(1, device="meta")}, BertConfig(**CONFIG), tmp_path)
    for size in ("5 bananas", 0, -1, 1.5, None, True):
        with pytest.raises(ArgumentError, match="max_shard_size"):
            save(weights(), BertConfig(**CONFIG), tmp_path, max_shard_size=size)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(weights(), BertConfig(**CONFIG), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Atomic files


def test_atomic_write(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_write(path, "w") as file:
        file.write("ä")
        assert not path.exists()
    assert path.read_bytes() == "ä".encode()
    path.chmod(0o640)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "ä".encode()
    with atomic_path(path) as temporary:
        temporary.unlink()  # a writer may make the file anew, with permissions of its own
        temporary.touch(mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_atomic_write_refuses(tmp_path):
    for place, kind in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "none" / "x", FileNotFoundError),
    ):
        with pytest.raises(kind) as caught, atomic_write(place):
            pass
        assert caught.value.filename == str(place)
    with pytest.raises(ValueError, match="mode"), atomic_write(tmp_path / "x", "a"):
        pass


def test_atomic_write_keeps_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(tmp_path / "pipe") as file:
        file.write(b"x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
