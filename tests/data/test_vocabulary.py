"""Vocabularies that are made of a corpus."""

from __future__ import annotations

import random

import pytest
from transformers import BertTokenizerFast

from bertfast.data.vocabulary import read_vocabulary, train_vocabulary
from bertfast.errors import ArgumentError
from bertfast.text.tokenizer import Tokenizer
from harness.stores import documents

TEXTS = [*documents(50), "Élan of My café.", "我们喜欢北京大学的狗"]


@pytest.mark.parametrize(
    "options", [{}, {"cased": True}, {"unused": 3}, {"chinese": True}], ids=str
)
def test_both_tokenizers_read_it(tmp_path, options):
    count = train_vocabulary(lambda: TEXTS, tmp_path, size=120, **options)
    listed = (tmp_path / "vocab.txt").read_text().splitlines()
    assert listed[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(listed) == count <= 120
    free = [f"[unused{n}]" for n in range(options.get("unused", 0))]
    assert listed[5 : 5 + len(free)] == free
    ours, theirs = Tokenizer.from_folder(tmp_path), BertTokenizerFast.from_pretrained(tmp_path)
    for text in (*TEXTS, "My dog [MASK] Élan 狗狗"):
        assert ours([text])[0][0] == theirs(text)["input_ids"]
    assert ("M" in listed or "My" in listed) == options.get("cased", False)
    assert theirs.tokenize("Café 狗狗")[-2:] == ["狗", "狗"]
    _, vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.tokens == listed
    assert vocabulary.unused == list(range(5 + len(free)))


def test_the_same_in_any_order(tmp_path):
    """Pairs that are equally frequent join in one order, whatever order the library meets them in."""
    shuffled = random.sample(TEXTS, len(TEXTS))
    for folder, texts in (("a", TEXTS), ("b", TEXTS), ("c", shuffled)):
        train_vocabulary(lambda texts=texts: texts, tmp_path / folder, size=200)
    for name in ("vocab.txt", "tokenizer.json"):
        assert len({(tmp_path / f / name).read_bytes() for f in "abc"}) == 1


def test_alphabet(tmp_path, monkeypatch):
    """Of an alphabetic language only the most frequent characters are kept; of Chinese as many as fit."""
    monkeypatch.setattr("bertfast.data.vocabulary._ALPHABET", 4)
    texts = ["aaaa bbb cc 我 d"] * 2 + ["e"]
    train_vocabulary(lambda: texts, tmp_path / "few", size=40)
    few = set((tmp_path / "few/vocab.txt").read_text().split())
    assert {"a", "b", "c"} < few
    assert "e" not in few
    train_vocabulary(lambda: texts, tmp_path / "all", size=40, chinese=True)
    assert {"d", "e", "我"} < set((tmp_path / "all/vocab.txt").read_text().split())


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (TEXTS, 5, "size: expected more than 5, the special tokens, got 5"),
        ([], 100, "INPUT: expected texts"),
        ([" \n"], 100, "INPUT: expected texts"),
    ],
)
def test_refused(tmp_path, texts, size, message):
    with pytest.raises(ArgumentError, match=message):
        train_vocabulary(lambda: texts, tmp_path / "new", size=size)
    assert not (tmp_path / "new").exists()
