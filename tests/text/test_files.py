"""The files of `bertfast encode`: what is read, what is written, and what a mistake says."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bertfast.cli import files
from bertfast.errors import ArgumentError, InputFileError, UnsupportedError
from bertfast.text.readers import reading
from harness import seeds

ROWS = ["plain", "", "道可道", 'a "quoted", text\nof two lines', " spaces "]


def read(path, kind=None, field="text") -> list[str]:
    with reading(str(path), kind, field) as texts:
        return list(texts)


def write(path, kind=None, blocks=((ROWS[:2], 2), (ROWS[2:], 3))) -> np.ndarray:
    vectors = (
        np.random.default_rng(seeds.seed()).normal(size=(sum(n for _, n in blocks), 4)).astype("f4")
    )
    done = 0
    with files.output(str(path), kind) as target, target.writer(4) as put:
        for texts, count in blocks:
            put(list(texts), vectors[done : done + count])
            done += count
    return vectors


# Reading


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"one\ntwo", ["one", "two"]),
        ("a.txt", b"\xef\xbb\xbfone\r\n\r\n two \n", ["one", "", " two "]),
        ("a.txt", "a\u2028b\x0cc\rd\n".encode(), ["a\u2028b\x0cc\rd"]),
        ("a.txt", b"", []),
        ("a.jsonl", b'{"text": "\\u4e2d"}\n\n{"text": "", "n": 1}\n', ["中", ""]),
        ("a.ndjson", b'{"text": "x"}', ["x"]),
        ("a.csv", b'id,text\r\n1,"a, b\r\nc"\r\n\r\n2,\r\n', ["a, b\r\nc", ""]),
        ("a.CSV", b"\xef\xbb\xbftext\nx\n", ["x"]),
    ],
)
def test_read(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_read_parquet(tmp_path, kind):
    column = pyarrow.array(ROWS)
    if kind == "dictionary":
        column = column.dictionary_encode()
    elif kind == "large_string":
        column = column.cast(pyarrow.large_string())
    table = pyarrow.table({"n": range(5), "body": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet", field="body") == ROWS


def test_read_a_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\nb\n".encode())))
    assert read("-") == ["é", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok\nna\xefve\n", "line 2: expected UTF-8, got the byte 0xef at place 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: expected a JSON object ("),
        ("a.jsonl", b"[" * 100_000, "line 1: expected a JSON object ("),
        ("a.jsonl", b'"a"\n', "line 1: expected a JSON object, got str"),
        ("a.jsonl", b'\n{"body": 1, "id": 2}\n', "line 2: no field 'text', only body, id. Say"),
        ("a.jsonl", b'{"text": null}\n', "line 1: text: expected a string, got null"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: text: expected text, got half a surrog"),
        ("a.csv", b"id,body\n1,x\n", "line 1: no field 'text', only id, body. Say --field NAME"),
        ("a.csv", b"id,text\n1,x\n2\n", "line 3: expected at least 2 columns, as text is number 2"),
        ("a.csv", b'text\n"open\n', "line 2: unexpected end of data"),
        ("a.csv", b"text\n\xff\n", "line 2: expected UTF-8, got the byte 0xff at place 1"),
        ("a.parquet", b"PAR1 no", "a.parquet: expected a parquet file ("),
    ],
)
def test_bad_input(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputFileError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"body": ["a"]}, "no field 'text', only body"),
        ({"text": [1]}, "text: expected a column of strings, got int64"),
        ({"text": ["a", None]}, "row 2: text: expected a string, got null"),
    ],
    ids=str,
)
def test_bad_parquet(tmp_path, column, message):
    pyarrow.parquet.write_table(pyarrow.table(column), tmp_path / "a.parquet")
    with pytest.raises(InputFileError) as error:
        read(tmp_path / "a.parquet")
    assert message in str(error.value)


def test_lines_before_a_bad_one_are_streamed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n")
    with reading(str(tmp_path / "a.txt")) as texts:
        assert next(texts) == "one"
        with pytest.raises(InputFileError, match="line 2"):
            next(texts)


def test_unreadable(tmp_path):
    with pytest.raises(InputFileError, match=r"none.txt: cannot be read, No such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(InputFileError, match="cannot be read, Is a directory"):
        read(tmp_path, "txt")
    with pytest.raises(ArgumentError, match=r"INPUT: expected a name in .txt.*Or say --input"):
        read(tmp_path / "a.docx")


# Writing


def test_write_npy(tmp_path):
    vectors = write(tmp_path / "a.npy")
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert (found == vectors).all()
    assert found.dtype == np.float32
    write(tmp_path / "a.npy", blocks=())
    assert np.load(tmp_path / "a.npy").shape == (0, 4)


def test_write_jsonl(tmp_path):
    vectors = write(tmp_path / "a.jsonl")
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().split("\n")[:-1]]
    assert [record["text"] for record in records] == ROWS
    assert (np.float32([record["embedding"] for record in records]) == vectors).all()


def test_write_parquet(tmp_path):
    vectors = write(tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table["text"].to_pylist() == ROWS
    assert (np.float32(table["embedding"].to_pylist()) == vectors).all()


@pytest.mark.parametrize("kind", list(files.WRITERS))
def test_write_a_pipe(kind, tmp_path, monkeypatch):
    """Nothing is sought in standard output, whatever it is: what stands before stays."""
    write(tmp_path / f"a.{kind}")
    with open(tmp_path / "out", "w+") as handle:
        handle.write("before")
        handle.flush()
        monkeypatch.setattr(sys, "stdout", handle)
        write("-", kind)
    expected = (tmp_path / f"a.{kind}").read_bytes()
    assert (tmp_path / "out").read_bytes() == b"before" + expected


@pytest.mark.parametrize("kind", list(files.WRITERS))
def test_an_error_leaves_what_was_there(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    path.write_text("old")

    def fail():
        with files.output(str(path)) as target, target.writer(4) as put:
            put(ROWS[:2], np.zeros((2, 4), np.float32))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", list(files.WRITERS))
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_disk_full(kind):
    with pytest.raises(OSError, match="No space left") as error:
        write("/dev/full", kind, blocks=[(["a"] * 9000, 9000)])
    assert error.value.filename == "/dev/full"


def test_bad_output(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"--output: expected a name in .npy, .parquet, .jsonl"):
        write(tmp_path / "a.txt")
    with pytest.raises(OSError, match="No such file") as error:
        write(tmp_path / "none" / "a.npy")
    assert error.value.filename == str(tmp_path / "none" / "a.npy")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(ArgumentError, match="expected a file or a pipe for npy, got a terminal"):
        write("-", "npy")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bertfast\[parquet\]'"):
        write(tmp_path / "a.parquet")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("rows", [0, 1, 10**18])
def test_npy_header(rows):
    header = files.npy_header(rows, 384)
    assert len(header) == 128
    source = io.BytesIO(header)
    assert np.lib.format.read_magic(source) == (1, 0)
    assert np.lib.format.read_array_header_1_0(source) == ((rows, 384), False, np.dtype("<f4"))
