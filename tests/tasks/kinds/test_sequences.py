"""How texts and pairs of texts become sequences: cut as BERT cuts them, or in windows whose scores are averaged."""

from __future__ import annotations

import numpy as np
import pytest
import transformers

from bertfast.errors import ArgumentError
from bertfast.tasks.kinds.classification import shortened
from harness import seeds


def rows_of(sequences) -> list[list[int]]:
    return [
        sequences.tokens[a:b].tolist()
        for a, b in zip(sequences.starts, sequences.starts[1:], strict=False)
    ]


def truncate_seq_pair(a: list, b: list, most: int) -> None:
    """google-research/bert, run_classifier.py."""
    while len(a) + len(b) > most:
        if len(a) > len(b):
            a.pop()
        else:
            b.pop()


def test_pairs_are_cut_as_berts():
    for room in range(1, 12):
        for first in range(14):
            for second in range(14):
                a, b = [0] * first, [0] * second
                truncate_seq_pair(a, b, room)
                assert shortened(first, second, room) == (len(a), len(b))


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


def test_pairs_beside_transformers(kind_of, theirs):
    """The same tokens and segments as longest_first, except in ties: where the two texts end equally long, or one token
    apart, BERT takes the odd token from the second text and longest_first from the longer one."""
    draw, pairs = np.random.default_rng(seeds.seed(3)), []
    for _ in range(60):
        pairs.append(
            tuple(" ".join(draw.choice(list("abcxyz"), draw.integers(1, 30))) for _ in "ab")
        )
    kind = kind_of("pair", max_length=20)
    sequences, ties = kind.encode(pairs), 0
    got = rows_of(sequences)
    for index, (a, b) in enumerate(pairs):
        want = theirs(a, b, truncation="longest_first", max_length=20)
        lengths = [len(text.split()) for text in (a, b)]
        types = sequences.types[sequences.starts[index] : sequences.starts[index + 1]].tolist()
        if min(lengths) > 8 and sum(lengths) > 17:  # both lose: 9 and 8, or 8 and 9
            ties += 1
            assert types == [0] * 11 + [1] * 9
            assert sorted((want["token_type_ids"].count(0), want["token_type_ids"].count(1))) in (
                [9, 11],
                [10, 10],
            )
            assert got[index][:9] == want["input_ids"][:9]
        else:
            assert got[index] == want["input_ids"]
            assert types == want["token_type_ids"]
    assert 10 < ties < 50
    assert sequences.cut == sum(len(a.split()) + len(b.split()) > 17 for a, b in pairs)


def test_single_texts_are_cut(kind_of, theirs):
    texts = ["i live in paris " * n for n in (1, 2, 3, 9)]
    sequences = kind_of("single", max_length=10).encode(texts)
    assert rows_of(sequences) == theirs(texts, truncation=True, max_length=10)["input_ids"]
    assert sequences.cut == 2


@pytest.mark.parametrize(("stride", "step"), [(None, 4), (3, 3), (50, 8)])  # 8: of a window
def test_windows_of_a_text(kind_of, tokenizer, stride, step):
    """Every token is seen; each window starts a stride after the one before; no window is there for nothing."""
    texts = [" ".join("abcdefghij"[i % 10] for i in range(n)) for n in (1, 8, 9, 31)]
    kind = kind_of("single", max_length=10, long="slide", stride=stride)
    sequences = kind.encode(texts)
    rows = rows_of(sequences)
    assert sequences.cut == 0
    for example, ids in enumerate(tokenizer.ids(texts)):
        windows = [
            row[1:-1] for row, owner in zip(rows, sequences.owner, strict=True) if owner == example
        ]
        assert len(windows) == 1 + max(0, -(-(len(ids) - 8) // step))
        seen = set()
        for number, window in enumerate(windows):
            start = number * step
            assert window == ids[start : start + 8]
            seen |= set(range(start, start + len(window)))
        assert seen == set(range(len(ids)))


def test_windows_of_a_pair(kind_of, tokenizer):
    """The first text keeps at least half of the room beside each window of the second."""
    kind = kind_of("pair", max_length=15, long="slide")
    first, second = " ".join("abcdefghi"), " ".join("jklmnopqrstuvwxyz")
    sequences = kind.encode([(first, second), ("a b", second), (first, "x")])
    rows, (a, b) = rows_of(sequences), tokenizer.ids([first, second])
    cls, sep = tokenizer.cls_sep
    assert [int(n) for n in np.bincount(sequences.owner)] == [5, 3, 1]
    for number, row in enumerate(rows[:5]):
        assert row == [cls, *a[:6], sep, *b[number * 3 : number * 3 + 6], sep]
    assert rows[5] == [cls, *tokenizer.ids(["a b"])[0], sep, *b[:10], sep]
    assert rows[-1] == [cls, *a, sep, *tokenizer.ids(["x"])[0], sep]
    assert sequences.cut == 1  # the first text of the first pair


def test_scores_of_windows_are_averaged(kind_of):
    kind = kind_of("single", max_length=10, long="slide", labels=("a", "b"))
    sequences = kind.encode(["a", "b " * 13, "c"])
    assert sequences.owner.tolist() == [0, 1, 1, 1, 2]
    outputs = [np.array(row) for row in ([1, 2], [0, 6], [3, 0], [3, 3], [7, 7])]
    assert kind.gather(sequences, outputs).tolist() == [[1, 2], [2, 3], [7, 7]]
    targets = kind.targets(np.array([1, 0, 1]), sequences)
    assert targets.examples["labels"].tolist() == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("task", "texts", "said"),
    [
        ("single", ["a", 7], r"texts\[1\]: expected a string or a pair of strings, got 7"),
        ("single", ["a", ("a", "b")], "all single texts or all pairs"),
        ("pair", [("a", "b"), "a"], r"texts\[1\]: expected a pair of strings, got 'a'"),
        ("pair", [("a", None)], r"texts\[0\]: expected a pair"),
        ("single", ["a\ud800"], r"texts\[0\]: expected Unicode text"),
    ],
)
def test_wrong_texts(kind_of, task, texts, said):
    with pytest.raises(ArgumentError, match=said):
        kind_of(task).encode(texts)
