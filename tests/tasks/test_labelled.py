"""Readers of labelled examples: the same table from each format, and what each says of bad input."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest

from bertfast.data.labelled import columns
from bertfast.data.labelled.conll import read_conll
from bertfast.data.labelled.split import split
from bertfast.data.labelled.tables import read_table
from bertfast.errors import ArgumentError, InputFileError

TEXTS = ["Ein Tag", "我的狗", 'so "it" is', "x"]
LABELS = ["yes", "no", "yes", "no"]


def write(folder, kind: str):
    """TEXTS and LABELS as a file of a kind."""
    path = folder / f"data.{kind}"
    rows = list(zip(TEXTS, LABELS, strict=True))
    if kind == "csv":
        lines = ["id,text,label", *(f'1,"{t.replace(chr(34), chr(34) * 2)}",{y}' for t, y in rows)]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n")
    elif kind == "tsv":
        path.write_text("\n".join(["id\ttext\tlabel", *(f"1\t{t}\t{y}" for t, y in rows)]))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "label": y, "id": 1}) for t, y in rows))
    else:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        made = {"text": TEXTS, "label": LABELS}
        datasets.Dataset.from_dict(made, features=features).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "datasets"])
def test_every_format(kind, tmp_path):
    path = write(tmp_path, kind)
    table = read_table(path, ["label", "text"])
    assert table.columns == {"label": LABELS, "text": TEXTS}
    assert columns.texts(table, "text") == TEXTS
    names = columns.label_names(table, "label")
    assert names == ["no", "yes"]
    assert columns.label_numbers(table, "label", names).tolist() == [1, 0, 1, 0]
    assert {"text", "label"} <= set(read_table(path).columns)
    with pytest.raises(InputFileError, match=r"data\..*no field 'txt', only .*text.*Name the"):
        read_table(path, ["txt"])
    place = f"{path}, " + {"jsonl": "line 2", "datasets": "row 2"}.get(kind, "line 3")
    assert table.place(1) == place
    with pytest.raises(InputFileError, match=f"{place}: label: expected a label of yes, got 'no'"):
        columns.label_numbers(table, "label", ["yes"])


def table_of(folder, **values):
    """A table of JSON values."""
    path = folder / "data.jsonl"
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_table(path)


def test_quotes_are_text_in_tsv(tmp_path):
    (tmp_path / "a.tsv").write_text('a\tb\n"open\tx\n"\t"\n')
    assert read_table(tmp_path / "a.tsv").columns == {"a": ['"open', '"'], "b": ["x", '"']}


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_ragged_lines(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    comma = "," if kind == "csv" else "\t"
    lines = ["a,b", "1,b", "2", "3,b", "4,b,c"]
    path.write_text("\n".join(lines).replace(",", comma))
    with pytest.raises(InputFileError, match=r"line 3: expected 2 fields \(a, b\), got 1"):
        read_table(path)
    table = read_table(path, drop_ragged=True)
    assert table.columns["a"] == ["1", "3"]
    assert table.numbers == [2, 4]
    assert table.dropped == [3, 5]
    named = read_table(path, ["y"], header=["x", "y"], drop_ragged=True)
    assert named.columns == {"y": ["b", "b", "b"]}


def test_other_files(tmp_path):
    path = tmp_path / "a.csv"
    with pytest.raises(InputFileError, match=r"a\.csv: cannot be read, No such file"):
        read_table(path)
    path.write_text("a,b\n")
    with pytest.raises(InputFileError, match="expected examples, got none"):
        read_table(path)
    path.write_text("a,a\n1,2\n")
    with pytest.raises(InputFileError, match="line 1: expected one column 'a', got 2"):
        read_table(path, ["a"])
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(InputFileError, match="line 2: expected UTF-8"):
        read_table(path)
    with pytest.raises(ArgumentError, match=r"expected a name in \.csv, \.tsv, \.jsonl"):
        read_table(tmp_path / "a.doc")
    with pytest.raises(ArgumentError, match="kind: expected csv, tsv, jsonl, datasets"):
        read_table(path, kind="xml")
    with pytest.raises(InputFileError, match=r"load_from_disk reads"):
        read_table(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"b": 2}')
    with pytest.raises(InputFileError, match="line 3: no field 'a', only b"):
        read_table(path)


@pytest.mark.parametrize(
    ("values", "call", "message"),
    [
        (["a", " "], lambda t: columns.texts(t, "v"), "line 2: v: expected a text, got an empty"),
        (["a", 3], lambda t: columns.texts(t, "v"), "line 2: v: expected a text, got 3"),
        (["a", None], lambda t: columns.texts(t, "v"), "line 2: v: expected a text, got null"),
        (["\ud800"], lambda t: columns.texts(t, "v"), "line 1: v: .* half a surrogate pair"),
        (["a", "a"], lambda t: columns.label_names(t, "v"), "at least two labels, got only 'a'"),
        (
            ["a", ""],
            lambda t: columns.label_names(t, "v"),
            "line 2: v: expected a label, got an em",
        ),
        ([1, 1.5], lambda t: columns.label_names(t, "v"), "line 2: v: expected a label, got 1.5"),
        (["a"], lambda t: columns.label_names(t, "w"), "no field 'w', only v"),
        ([1, "x"], lambda t: columns.numbers(t, "v"), "line 2: v: expected a number, got 'x'"),
        ([1, "nan"], lambda t: columns.numbers(t, "v"), "line 2: v: expected a number, got 'nan'"),
        ([1, True], lambda t: columns.numbers(t, "v"), "line 2: v: expected a number, got True"),
        ([["a"], 3], lambda t: columns.label_sets(t, "v"), "line 2: v: expected a list of labels"),
        ([[], ""], lambda t: columns.set_names(t, "v"), "expected labels, got none in any"),
        (["a,b"], lambda t: columns.set_matrix(t, "v", ["a"]), "expected labels of a, got 'b'"),
    ],
)
def test_bad_values(values, call, message, tmp_path):
    with pytest.raises(InputFileError, match=message):
        call(table_of(tmp_path, v=values))


def test_values(tmp_path):
    table = table_of(
        tmp_path, n=["1", 2.5, 3], y=[10, "9", 9], s=["b,a", [], ["a", "a"]], t=["", "x", " "]
    )
    assert columns.numbers(table, "n").tolist() == [1, 2.5, 3]
    assert columns.label_names(table, "y") == ["9", "10"]  # by value
    names = columns.set_names(table, "s")
    assert names == ["a", "b"]
    assert columns.set_matrix(table, "s", names).tolist() == [[1, 1], [0, 0], [1, 0]]
    assert columns.texts(table, "t", allow_empty=True) == ["", "x", " "]
    flags = table_of(tmp_path, y=[True, False])
    assert columns.label_names(flags, "y") == ["false", "true"]


def test_fewer_than_a_batch():
    columns.check_count("a.csv", 16, 16)
    with pytest.raises(InputFileError, match=r"a\.csv: expected at least a batch of 16 .* got 15"):
        columns.check_count("a.csv", 15, 16)


@pytest.mark.parametrize("blank", ["", "\t", " ", "\r"])
@pytest.mark.parametrize("separator", ["\t", " ", "  "])
def test_conll(separator, blank, tmp_path):
    path = tmp_path / "a.conll"
    rows = ["-DOCSTART- -X- O", "", "EU x B-a", "\u00a0 x I-a", blank, blank, "# y O"]
    path.write_text(
        "\n".join(rows)
        .replace(" x ", f"{separator}x{separator}")
        .replace(" y ", f"{separator}y{separator}")
    )
    found = read_conll(path)
    assert found.words == [["EU", "\u00a0"], ["#"]]
    assert found.tags == [["B-a", "I-a"], ["O"]]
    assert found.numbers == [3, 7]
    assert read_conll(path, 1, 0).words == [["x", "x"], ["y"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tO\n\nb\tO\tx", "line 3: expected 2 columns as before, got 3"),
        ("a\tO\nb", "line 2: expected 2 columns as before, got 1"),
        ("a\tO\n\tO", "line 2: expected a word, got an empty column"),
        ("a\tO\nb\t", "line 2: expected a tag, got an empty column"),
        ("a", "line 1: expected a word and a tag, got one column 'a'"),
        ("\n\n", "expected sentences, got none"),
    ],
)
def test_bad_conll(text, message, tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(text)
    with pytest.raises(InputFileError, match=message):
        read_conll(path)


def test_columns_of_conll(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("a O")
    with pytest.raises(InputFileError, match="line 1: expected a column 2 for the tag, got 2"):
        read_conll(path, tag=2)
    with pytest.raises(InputFileError, match=r"b\.conll: cannot be read"):
        read_conll(tmp_path / "b.conll")


def test_split():
    train, evaluation = split(1000, 0.1, seed=3)
    assert len(evaluation) == 100
    np.testing.assert_array_equal(np.sort(np.concatenate([train, evaluation])), np.arange(1000))
    assert set(evaluation) < set(split(1000, 0.3, seed=3)[1])
    assert set(evaluation) != set(split(1000, 0.1, seed=4)[1])
    # known numbers: a change of the draw parts every data set anew
    assert split(20, 0.2)[1].tolist() == [2, 3, 11, 19]
    assert [len(side) for side in split(2, 0.01)] == [1, 1]
    assert [len(side) for side in split(3, 0.99)] == [1, 2]


def test_split_of_groups():
    groups = [f"title {number % 7}" for number in range(100)]
    train, evaluation = split(100, 0.3, groups=groups)
    inside, outside = ({groups[i] for i in side} for side in (evaluation, train))
    assert not inside & outside
    assert len(inside) == 2  # of 14 or 15 each
    sizes = ["big"] * 90 + ["small"] * 10  # whichever is drawn first, both sides have one
    assert all(len(side) for side in split(100, 0.5, groups=sizes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split(10, 0), "share: expected a number between 0 and 1"),
        (lambda: split(10, 1.0), "share: expected a number between 0 and 1"),
        (lambda: split(1, 0.5), "count: expected at least two"),
        (lambda: split(2, 0.5, groups=["a", "a"]), "groups: expected at least two"),
        (lambda: split(2, 0.5, groups=["a"]), "groups: expected 2 values, got 1"),
    ],
)
def test_bad_split(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
