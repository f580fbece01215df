"""Stores: many shards read as one, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest
from transformers import BertTokenizerFast

from bertfast.data.joined import Joined
from bertfast.data.store import Store, shard_folder
from bertfast.errors import CheckpointError, StoreError
from bertfast.text.tokenizer import Tokenizer
from harness import seeds
from harness.stores import uniform_documents, write_store


def test_joined_is_one_array():
    draw = np.random.default_rng(seeds.seed())
    whole = np.cumsum(draw.integers(1, 9, 300)) - 1
    whole -= whole[0]
    end = int(whole[-1]) + 5
    borders = np.array([0, 1, 40, 41, 200, 300])
    parts = [(whole[a:b] - whole[a]).astype(np.uint32) for a, b in pairwise(borders)]
    joined = Joined(parts, whole[borders[:-1]], end)
    index = draw.integers(0, 301, 1000)
    every = np.append(whole, end)
    assert len(joined) == 301
    np.testing.assert_array_equal(joined[index], every[index])
    np.testing.assert_array_equal(joined.range(39, 300), every[39:])
    values = draw.integers(0, end + 10, 1000)
    np.testing.assert_array_equal(
        joined.last_at_most(values), every.searchsorted(values, side="right") - 1
    )
    assert joined[index[:0]].size == joined.last_at_most(values[:0]).size == 0


def test_tokens_and_words_are_those_written(tokenizer_folder, tmp_path):
    """Spans of several shards; numbers that are no multiple of eight."""
    parts = [uniform_documents(tokenizer_folder, count, count) for count in (3, 1, 4)]
    store = write_store(tmp_path / "store", tokenizer_folder, parts)
    tokens = np.concatenate([part.tokens for part in parts])
    words = np.concatenate([part.starts_word for part in parts])
    assert store.tokens == len(tokens)
    starts = store.sentence_starts.range(0, store.sentences)
    for kind, expected, copy in (
        (int, tokens, store.copy_tokens),
        (bool, words, store.copy_words),
    ):
        found = np.empty(store.tokens, dtype=kind)
        copy(starts[:-1], np.diff(starts).tolist(), found, starts[:-1].tolist())
        np.testing.assert_array_equal(found, expected)
    lengths = np.concatenate([part.document_lengths for part in parts])
    np.testing.assert_array_equal(
        store.document_starts.range(0, store.documents), [0, *np.cumsum(lengths)]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/fd")
def test_no_file_stays_open(store):
    """A store has thousands of shards, a process often 1024 files."""
    before = len(os.listdir("/proc/self/fd"))
    kept = Store.open(store.folder)
    assert kept.documents
    assert len(os.listdir("/proc/self/fd")) == before


def test_maps_are_not_written(store):
    with pytest.raises(ValueError, match="read-only"):
        store._tokens[0][0] = 1


@pytest.fixture
def copied(store, tmp_path):
    return shutil.copytree(store.folder, tmp_path / "copy")


def test_another_place_is_the_same_store(store, copied):
    found = Store.open(copied, verify=True)
    assert found.fingerprint == store.fingerprint
    assert (found.cls, found.sep, found.mask, found.pad, found.unk) == (101, 102, 103, 0, 100)
    assert found.vocab_size == 30522
    assert len(found.unused) == 5 + 994  # [unused0] to [unused993]


def test_no_store_and_an_unfinished_one(copied, tmp_path):
    with pytest.raises(StoreError, match="got no store. Run bertfast prepare first"):
        Store.open(tmp_path / "nothing")
    (copied / "store.json").unlink()
    with pytest.raises(StoreError, match="got an unfinished run. Run bertfast prepare again"):
        Store.open(copied)


def test_another_version(copied):
    about = json.loads((copied / "store.json").read_text())
    (copied / "store.json").write_text(json.dumps({**about, "version": 2}))
    with pytest.raises(StoreError, match=r"store.json: expected version 1, got 2"):
        Store.open(copied)


def test_damaged_shards(copied):
    """Another size is always seen, another byte when asked for."""
    path = shard_folder(copied, 1) / "tokens.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    Store.open(copied)
    with pytest.raises(StoreError, match=r"00000001.tokens.bin: damaged, its hash"):
        Store.open(copied, verify=True)
    path.write_bytes(data[:-2])
    with pytest.raises(StoreError, match=r"tokens.bin: expected a file of \d+ bytes, got \d+"):
        Store.open(copied)
    path.unlink()
    with pytest.raises(StoreError, match=r"got nothing there. .* run bertfast prepare again"):
        Store.open(copied)


def test_damaged_tokenizer(copied):
    with open(copied / "tokenizer/vocab.txt", "a") as handle:
        handle.write("more\n")
    with pytest.raises(StoreError, match=r"vocab.txt: damaged"):
        Store.open(copied)


def test_vocabularies(store, minilm, tokenizer_folder):
    store.check_vocabulary(minilm)
    store.check_vocabulary(Tokenizer.from_folder(minilm))
    store.check_vocabulary(BertTokenizerFast.from_pretrained(minilm))
    with pytest.raises(StoreError, match="made with another vocabulary than .* has"):
        store.check_vocabulary(tokenizer_folder)
    with pytest.raises(CheckpointError):
        store.check_vocabulary(store.folder)
