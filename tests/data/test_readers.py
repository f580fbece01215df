"""Documents of each kind of input, by slices; sentences."""

from __future__ import annotations

import json
from itertools import pairwise

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bertfast.data import readers
from bertfast.data.readers import documents, slices, texts
from bertfast.data.sentences import sentences, splitter
from bertfast.errors import ArgumentError, InputFileError
from harness.stores import documents as make_documents

KINDS = ("txt", "jsonl", "parquet", "datasets")


def write(kind: str, folder, docs: list[str]):
    """The documents as an input of a kind."""
    path = folder / f"corpus.{kind}"
    if kind == "txt":
        path.write_text("\n \t\n\n".join(docs))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"body": text, "n": 1}) + "\n" for text in docs))
    elif kind == "parquet":
        table = pyarrow.table({"body": docs, "n": list(range(len(docs)))})
        pyarrow.parquet.write_table(table, path, row_group_size=7)
    else:
        datasets.Dataset.from_dict({"body": docs}).save_to_disk(path)
    return path


@pytest.mark.parametrize("size", [100, 1000, 1 << 22])
@pytest.mark.parametrize("kind", KINDS)
def test_slices_have_every_document_once(kind, size, tmp_path, monkeypatch):
    """In order, whatever the slices are."""
    docs = make_documents(40)
    docs[3:3] = ["Two lines\nof one document.", "Übergrößen 我的狗."]
    path = write(kind, tmp_path, docs)
    monkeypatch.setattr(readers, "SLICE", size)
    parts = slices([path], "body")
    assert (len(parts) > 3) == (size < 1 << 22)
    found = [text.rstrip("\n") for part in parts for text in documents(part)]
    assert found == docs
    for before, after in pairwise(parts):
        assert before.stop == after.start


def test_a_border_on_the_edge_of_what_is_read(tmp_path, monkeypatch):
    """A blank line that two pieces share is found, wherever they part."""
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n \t \nthree\n\nfour")
    monkeypatch.setattr(readers, "SLICE", 1)
    whole = [part.stop for part in slices([path])]
    assert whole == [12, 19, 23]
    for piece in range(1, 12):
        monkeypatch.setattr(readers, "_PIECE", piece)
        assert [part.stop for part in slices([path])] == whole
    assert list(texts([path])) == ["one\ntwo\n", "three\n", "four"]


def broken(kind: str, folder):
    """An input with something that is no text in its 31st record, and where that is said to be."""
    docs = make_documents(40)
    path = write(kind, folder, docs)
    if kind == "jsonl":
        lines = path.read_text().splitlines()
        lines[30] = '{"body": 3}'
        path.write_text("\n".join(lines))
        return path, "line 31: body: expected a string, got int"
    docs[30] = None
    if kind == "parquet":
        return write(kind, folder, docs), "row 31: body: expected a string, got null"
    path = folder / "other"
    datasets.Dataset.from_dict({"body": docs}).save_to_disk(path)
    return path, "row 31: body: expected a string, got None"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_broken_records(kind, tmp_path, monkeypatch):
    path, message = broken(kind, tmp_path)
    monkeypatch.setattr(readers, "SLICE", 500)
    with pytest.raises(InputFileError, match=f"{path.name}, {message}"):
        list(texts([path], "body"))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_no_such_field(kind, tmp_path):
    path = write(kind, tmp_path, make_documents(3))
    with pytest.raises(InputFileError, match="no field 'text', only body"):
        list(texts([path]))


def test_other_inputs(tmp_path):
    (tmp_path / "a.pdf").touch()
    with pytest.raises(ArgumentError, match=r"expected a name in \.txt, \.jsonl, \.parquet"):
        slices([tmp_path / "a.pdf"])
    with pytest.raises(
        InputFileError, match="expected a folder that datasets.load_from_disk reads"
    ):
        slices([tmp_path])
    data = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    with pytest.raises(InputFileError, match=r"got train, test\. Give the folder of one"):
        slices([tmp_path / "both"])


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Dr. Smith is in.\nHe left! Why?  ", ["Dr. Smith is in.", "He left!", "Why?"]),
        ("en", "One line\nand its rest.\n\nA title\n\nText.", 3),
        ("de", "Er kam z. B. so. Ja.", ["Er kam z. B. so.", "Ja."]),
        ("zh", "好。“是吗？！”他说；;完", ["好。", "“是吗？！”", "他说；;", "完"]),
        ("zh", "。。\n 。", ["。。", "。"]),
        ("en", " \n\t\n ", []),
    ],
)
def test_sentences(language, text, expected):
    found = sentences(text, splitter(language))
    assert (len(found) if isinstance(expected, int) else found) == expected
