"""Token ids: equal to transformers' BertTokenizer, from either file, with every option."""

from __future__ import annotations

import json
import shutil

import pytest
import tokenizers
from transformers import AutoTokenizer

from bertfast.data.tokenizer import Tokenizer, read_vocab
from bertfast.errors import ArgumentError, CheckpointError

TEXTS = [
    "",
    " \t ",
    "Call me Ishmael.",
    "Some years ago—never mind how long—I can't; won't stop...",
    "道可道，非常道；名可名，非常名。 The Tao.",
    "明月松间照 Café NAÏVE Ångström ÜBER straße",
    "[MASK] and [SEP] inside, [mask] too",
    "zero\x00width\u200bspace\ufffd and \u2028 line",
    "unbelievabletokenizationofaverylongword" * 5,
    "12,345.67 € 😀 ١٢٣ हिन्दी 한국어 日本語",
]
OPTIONS = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]


@pytest.fixture
def folder(minilm, tmp_path):
    """A checkpoint directory with MiniLM's config and vocabulary files, as asked."""

    def make(*names: str, options: dict | None = None):
        for name in ("config.json", *names):
            shutil.copy(minilm / name, tmp_path)
        if options is not None:
            config = {"tokenizer_class": "BertTokenizer", **options}
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return make


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_ids_are_those_of_transformers(folder, file, options):
    path = folder(file, options=options)
    expected = AutoTokenizer.from_pretrained(path)(TEXTS)["input_ids"]
    assert Tokenizer.from_folder(path)(TEXTS) == (expected, 0)


def test_whole_checkpoint(minilm):
    tokenizer = Tokenizer.from_folder(minilm)
    assert tokenizer(TEXTS)[0] == AutoTokenizer.from_pretrained(minilm)(TEXTS)["input_ids"]
    assert (tokenizer.max_length, tokenizer.special_tokens, len(tokenizer)) == (512, 2, 30522)


@pytest.mark.parametrize("max_length", [3, 5, 9])
def test_truncation(folder, max_length):
    path = folder("vocab.txt")
    expected = AutoTokenizer.from_pretrained(path)(TEXTS, truncation=True, max_length=max_length)
    whole, _ = Tokenizer.from_folder(path)(TEXTS)
    rows, cut = Tokenizer.from_folder(path)(TEXTS, max_length)
    assert rows == expected["input_ids"]
    assert cut == sum(len(row) > max_length for row in whole) > 0


def test_special_and_added_tokens(folder):
    path = folder("vocab.txt")
    (path / "special_tokens_map.json").write_text(json.dumps({"sep_token": {"content": "."}}))
    (path / "added_tokens.json").write_text(json.dumps({"[E2]": 30523, "[E1]": 30522}))
    rows, _ = Tokenizer.from_folder(path)(["a [E1] b [E2]"])
    assert rows == [[101, 1037, 30522, 1038, 30523, 1012]]
    (path / "added_tokens.json").write_text(json.dumps({"[E1]": 7}))
    with pytest.raises(CheckpointError, match=r"added_tokens.json: expected ids that continue"):
        Tokenizer.from_folder(path)


def test_no_limit_means_none(folder):
    path = folder("vocab.txt", options={"model_max_length": 10**30})
    assert Tokenizer.from_folder(path).max_length is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected tokenizer.json or vocab.txt, found neither"),
        ({"tokenizer.json": b"{"}, "tokenizer.json: expected a tokenizer, got a corrupt file"),
        ({"vocab.txt": b""}, "vocab.txt: expected a token a line, got an empty file"),
        ({"vocab.txt": b"[UNK]\n\xff\n"}, "vocab.txt: expected a vocabulary in UTF-8"),
        ({"vocab.txt": b"[UNK]\n[CLS]\n"}, "expected the token [SEP], it is not there"),
        ({"vocab.txt": b"a", "tokenizer_config.json": b"[]"}, "expected a JSON object"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value) or "nothing",
)
def test_bad_files(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        Tokenizer.from_folder(tmp_path)
    assert message in str(error.value)


def test_bad_texts(minilm):
    tokenizer = Tokenizer.from_folder(minilm)
    with pytest.raises(ArgumentError, match=r"texts\[1\]: expected a string, got int"):
        tokenizer(["a", 1])
    with pytest.raises(ArgumentError, match=r"texts\[2\]: expected Unicode text"):
        tokenizer(["a", "é", "\ud800"])
    with pytest.raises(ArgumentError, match="max_length: expected at least 3, got 2"):
        tokenizer(["a"], 2)


def test_vocab_lines(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("a\r\n\u2028\nb\na\n".encode())
    assert read_vocab(tmp_path / "vocab.txt") == {"a": 3, "\u2028": 1, "b": 2}


def test_own_settings_of_the_backend_do_not_hold(minilm):
    backend = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    assert backend.truncation["max_length"] == backend.padding["length"] == 128
    rows, _ = Tokenizer(backend)(["a " * 200, "b"])
    assert [len(row) for row in rows] == [202, 3]
