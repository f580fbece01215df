"""Token ids: equal to transformers' BertTokenizer, from either file, with every option."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import tokenizers
from transformers import AutoTokenizer

from bertfast.errors import ArgumentError, CheckpointError, UnsupportedError
from bertfast.text.tokenizer import Tokenizer

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
    """Lines end with newlines only; of equal ones the last counts."""
    (tmp_path / "vocab.txt").write_bytes("[UNK]\r\n\u2028\nb\nb\n[CLS]\n[SEP]\n".encode())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert Tokenizer.from_folder(tmp_path)(["b c"])[0] == [[4, 3, 0, 5]]


# What only transformers knows


def words(folder, count: int, **files: object) -> None:
    """A vocabulary of BERT's special tokens and some words, and files of a name each."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines = [*special, *(f"w{number}" for number in range(count - len(special)))]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("file", ["special_tokens_map", "tokenizer_config"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_special_tokens_stay_whole(folder, file, key):
    path = folder("vocab.txt")
    (path / f"{file}.json").write_text(json.dumps({key: ["[E1]"]}))
    expected = AutoTokenizer.from_pretrained(path)(["[E1] ab"])["input_ids"]
    rows, _ = Tokenizer.from_folder(path)(["[E1] ab"])
    assert rows == expected
    assert rows[0][1] == 30522


def test_ids_of_added_tokens_are_numbers(tmp_path):
    """98 to 101 stand in this order, as text they would not."""
    added = {f"[E{index}]": index for index in (101, 100, 98, 99)}
    words(tmp_path, 98, added_tokens=added)
    rows, _ = Tokenizer.from_folder(tmp_path)(["[E98] [E99] [E100] [E101]"])
    assert rows == [[2, 98, 99, 100, 101, 3]]


JAPANESE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "東京", "都", "に", "住む", "人", "京都"]


def japanese(folder, **options: object):
    config = {"tokenizer_class": "BertJapaneseTokenizer", **options}
    words(folder, 5, tokenizer_config=config)
    (folder / "vocab.txt").write_text("\n".join(JAPANESE) + "\n", encoding="utf-8")
    return folder


def test_japanese(tmp_path):
    for package in ("fugashi", "unidic_lite"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra: test)")
    mecab = {"word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": "unidic_lite"}}
    path = japanese(tmp_path, **mecab)
    tokenizer = Tokenizer.from_folder(path)
    (row,), _ = tokenizer(["東京都に住む人"])
    assert [JAPANESE[index] for index in row[1:-1]] == ["東京", "都", "に", "住む", "人"]
    assert tokenizer(["東京都に住む人"], 4) == ([[2, 5, 6, 3]], 1)


def test_japanese_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fugashi", None)
    path = japanese(tmp_path, word_tokenizer_type="mecab")
    with pytest.raises(UnsupportedError, match="install fugashi"):
        Tokenizer.from_folder(path)


def test_a_tokenizer_in_python(tmp_path):
    """Without MeCab; what a tokenizer of the library `tokenizers` has, this one has too."""
    path = japanese(tmp_path, word_tokenizer_type="basic", truncation_side="left")
    tokenizer, theirs = Tokenizer.from_folder(path), AutoTokenizer.from_pretrained(path)
    texts = ["", "東京 都 [MASK] に", "x"]
    assert tokenizer(texts)[0] == theirs(texts)["input_ids"]
    assert tokenizer([]) == ([], 0)
    cut = theirs(texts, truncation=True, max_length=4)["input_ids"]
    assert tokenizer(texts, 4) == (cut, 1)
    assert (len(tokenizer), tokenizer.special_tokens) == (len(JAPANESE), 2)
    assert tokenizer.backend.token_to_id("[MASK]") == 4
    assert tokenizer.backend.token_to_id("none") is None
    with pytest.raises(UnsupportedError, match="do_lower_case"):
        Tokenizer.from_folder(path, lower_case=True)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"tokenizer_class": "BertJapaneseTokenizer"}},
        {"special_tokens_map.json": {"additional_special_tokens": ["[E1]"]}},
        {"special_tokens_map.json": {"mask_token": {"content": "[E1]"}}},
        {"added_tokens.json": {"[E1]": 30522}},
        {"tokenizer_config.json": {"split_special_tokens": True}},
        {"tokenizer_config.json": {"added_tokens_decoder": {"30522": {"content": "[E1]"}}}},
        {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}},
        {"tokenizer_config.json": {"truncation_side": "left"}},
        {"tokenizer_config.json": {"max_len": 7}},
    ],
    ids=str,
)
def test_files_beside_tokenizer_json(folder, files):
    """Whatever they say, ids and cuts are those of transformers."""
    path = folder("vocab.txt", "tokenizer.json")
    for name, content in files.items():
        if "BertJapaneseTokenizer" in str(content):
            content = {**content, "word_tokenizer_type": "basic"}
        (path / name).write_text(json.dumps(content))
    tokenizer, theirs = Tokenizer.from_folder(path), AutoTokenizer.from_pretrained(path)
    texts = [*TEXTS, "[E1] ab [MASK]"]
    assert tokenizer(texts)[0] == theirs(texts)["input_ids"]
    cut = theirs(texts, truncation=True, max_length=5)["input_ids"]
    assert tokenizer(texts, 5)[0] == cut
    limit = theirs.model_max_length
    assert tokenizer.max_length == (limit if limit < 2**31 else None)


@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_direction_of_tokenizer_json(folder, direction):
    path = folder("tokenizer.json")
    content = json.loads((path / "tokenizer.json").read_text())
    content["truncation"]["direction"] = direction
    (path / "tokenizer.json").write_text(json.dumps(content))
    expected = AutoTokenizer.from_pretrained(path)(TEXTS, truncation=True, max_length=6)
    assert Tokenizer.from_folder(path)(TEXTS, 6)[0] == expected["input_ids"]


def test_bad_truncation_side(folder):
    path = folder("tokenizer.json", options={"truncation_side": "middle"})
    with pytest.raises(CheckpointError, match="expected right or left, got 'middle'"):
        Tokenizer.from_folder(path)


@pytest.mark.parametrize("map_", [{}, {"auto_map": {"AutoTokenizer": ["own.Own", None]}}])
def test_code_of_the_checkpoint_is_not_run(folder, map_):
    path = folder("vocab.txt", "tokenizer.json", options={"tokenizer_class": "Own", **map_})
    (path / "own.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(UnsupportedError, match="the tokenizer Own is unknown to transformers"):
        Tokenizer.from_folder(path)


def test_config_without_model_type(folder):
    """As in checkpoints of before transformers 3."""
    path = folder("vocab.txt")
    (path / "config.json").write_text("{}")
    assert Tokenizer.from_folder(path)(["ab c"])[0] == [[101, 11113, 1039, 102]]


def test_lower_case(folder):
    """Special tokens stay as they are."""
    path = folder("tokenizer.json", options={"do_lower_case": False})
    lower = Tokenizer.from_folder(path, lower_case=True)
    assert lower(["Call [MASK] İX"]) == Tokenizer.from_folder(path)(["call [MASK] i\u0307x"])


def test_tokens_that_the_table_lacks(tmp_path):
    words(tmp_path, 98, added_tokens={"[E1]": 98})
    tokenizer = Tokenizer.from_folder(tmp_path)
    rows, _ = tokenizer(["w1", "", "w2 [E1]"])
    tokenizer.check_ids(rows, 99)
    message = r"^texts\[12\]: expected tokens that the model has \(98\), got '\[E1\]', number 98. The tokenizer"
    with pytest.raises(ArgumentError, match=message):
        tokenizer.check_ids(rows, 98, start=10)


def test_json_needs_no_transformers(minilm, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    Tokenizer.from_folder(minilm)


def test_vocab_needs_transformers(folder, monkeypatch):
    path = folder("vocab.txt")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match="pip install transformers"):
        Tokenizer.from_folder(path)


def test_own_settings_of_the_backend_do_not_hold(minilm):
    backend = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    assert backend.truncation["max_length"] == backend.padding["length"] == 128
    rows, _ = Tokenizer(backend)(["a " * 200, "b"])
    assert [len(row) for row in rows] == [202, 3]
