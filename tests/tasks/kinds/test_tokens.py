"""Labels of words: where first pieces stand, words without pieces, words cut off, windows, and entities of a text."""

from __future__ import annotations

import numpy as np
import pytest

from bertfast.core.heads import IGNORED
from bertfast.errors import ArgumentError
from bertfast.tasks.kinds import Entity
from bertfast.tasks.kinds.tokens import words_of
from harness import seeds

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def drawn_sentences(count: int) -> list[list[str]]:
    """Words of one piece, of several, of none, unknown ones and Chinese ones."""
    draw = np.random.default_rng(seeds.seed(4))
    words = ["anna", "oslo2x", "xyz", "\u0301", "北", "北京", "\U0001f600", "[SEP]", "a-b", "café"]
    return [draw.choice(words, draw.integers(1, 14)).tolist() for _ in range(count)]


@pytest.mark.parametrize("max_length", [8, 12, 64])
def test_first_pieces_beside_a_loop(kind_of, tokenizer, max_length):
    """Truncated: labels stand at the first piece of each word that fits."""
    sentences = drawn_sentences(40)
    kind = kind_of("tokens", max_length=max_length, long="truncate", labels=LABELS)
    sequences = kind.encode(sentences)
    gold = [[i % 5 for i in range(len(words))] for words in sentences]
    targets, cut = kind.targets(gold, sequences), 0
    for number, words in enumerate(sentences):
        ids, labels = [], []
        for word, label in zip(words, gold[number], strict=True):
            pieces = tokenizer.encodings([[word]], words=True)[0].ids
            ids += pieces
            labels += [label, *[IGNORED] * (len(pieces) - 1)] if pieces else []
        cut += len(ids) > max_length - 2
        part = slice(sequences.starts[number], sequences.starts[number + 1])
        assert sequences.tokens[part][1:-1].tolist() == ids[: max_length - 2]
        got = targets.tokens["labels"][part].tolist()
        assert got == [IGNORED, *labels[: max_length - 2], IGNORED]
        assert targets.items[number] == sum(label != IGNORED for label in got)
    assert sequences.cut == cut
    assert (cut > 0) == (max_length < 64)


@pytest.mark.parametrize("stride", [None, 2, 5])
def test_windows_tell_each_word_once(kind_of, stride):
    """From the window where its first piece has the most context on its poorer side."""
    sentences = drawn_sentences(40)
    kind = kind_of("tokens", max_length=9, long="slide", stride=stride, labels=LABELS)
    sequences = kind.encode(sentences)
    # what a model would say: the number of the sequence and the position in it
    outputs = [
        np.array([[n, p, 0, 0, 0] for p in range(length)])
        for n, length in enumerate(sequences.lengths)
    ]
    found = kind.gather(sequences, outputs)
    whole = kind_of("tokens", max_length=64, labels=LABELS).encode(sentences)
    step, first = stride or 3, np.searchsorted(sequences.owner, np.arange(40))
    for number, words in enumerate(sentences):
        count = int(whole.lengths[number]) - 2
        starts = range(0, max(count - 7, 0) + step, step)
        starts = [s for s in starts if s == 0 or s - step + 7 < count]
        assert len(starts) == (sequences.owner == number).sum()
        for index in range(len(words)):
            place = whole.details[number].position[index] - 1
            if place < 0:
                assert np.isnan(found[number][index]).all()  # no pieces
                continue
            context = [min(place - s, min(s + 7, count) - 1 - place) for s in starts]
            window, position = found[number][index][:2].astype(int)
            assert window - first[number] == int(np.argmax(context))
            assert position == place - starts[window - first[number]] + 1
    labels = kind.targets([[1] * len(words) for words in sentences], sequences).tokens["labels"]
    seen = sum(int((detail.position > 0).sum()) for detail in whole.details)
    assert (labels != IGNORED).sum() == seen


def logits_of(labels: list[int]) -> np.ndarray:
    return np.eye(5)[labels] * 9


def test_entities_of_a_text(kind_of):
    kind = kind_of("tokens", labels=LABELS)
    text = "Anna Smith, of Cafe\u0301-Oslo."
    told = [3, 4, 0, 0, 1, 2, 2, 0]
    (found,) = kind.answers([text], [logits_of(told)])
    assert [entity[:4] for entity in found] == [
        ("PER", "Anna Smith", 0, 10),
        ("LOC", "Cafe\u0301-Oslo", 15, 25),
    ]
    words = ["Anna", "Smith", "left"]
    (found,) = kind.answers([words], [logits_of([3, 4, 0])])
    assert found == [Entity("PER", "Anna Smith", 0, 2, found[0].probability)]
    assert 0.99 < found[0].probability < 1


def test_chinese_entities(kind_of):
    (found,) = kind_of("tokens", labels=LABELS).answers(["我爱北京"], [logits_of([0, 0, 1, 2])])
    assert [entity[:4] for entity in found] == [("LOC", "北京", 2, 4)]


def test_words_that_were_not_seen(kind_of):
    """Cut off, or without pieces: O, and no more sure than chance."""
    kind = kind_of("tokens", max_length=8, long="truncate", labels=LABELS)
    words = ["anna"] * 6 + ["oslo", "\u0301"]
    sequences = kind.encode([words])
    outputs = [np.tile(np.eye(5)[3] * 9, (n, 1)) for n in sequences.lengths]
    found = kind.gather(sequences, outputs)
    tagged = kind.tags([words], found)[0]
    assert tagged.labels == ["B-PER"] * 6 + ["O", "O"]
    assert tagged.probabilities[-2:] == [0.2, 0.2]
    assert kind.scores([[3] * 6 + [1, 0]], found)["accuracy"] == 7 / 8


def test_empty_texts(kind_of):
    kind = kind_of("tokens", labels=LABELS)
    sequences = kind.encode(["", [], "\u0301"])
    assert sequences.lengths.tolist() == [2, 2, 2]
    found = kind.gather(sequences, [np.zeros((2, 5))] * 3)
    assert kind.answers(["", [], "\u0301"], found) == [[], [], []]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't go", ["don", "'", "t", "go"]),
        ("cafe\u0301s e\u0301", ["cafe\u0301s", "e\u0301"]),
        ("हिन्दी।", ["हिन्दी", "।"]),
        ("5€ 北京abc", ["5", "€", "北", "京", "abc"]),
        ("👩\u200d👧!", ["👩\u200d👧", "!"]),
        ("北\ufe00京e\u0301-x", ["北\ufe00", "京", "e\u0301", "-", "x"]),
        (" \u3000\n", []),
        ("_a_ x,\u0301y", ["_a_", "x", ",\u0301", "y"]),
    ],
)
def test_words_of_a_text(text, words):
    found, places = words_of(text)
    assert found == words
    assert [text[a:b] for a, b in places] == words


def test_wrong_words(kind_of):
    with pytest.raises(ArgumentError, match=r"texts\[1\]: expected Unicode text"):
        kind_of("tokens").encode(["a", ["b", "\ud800"]])
    for item, got in ((["a", 3], "3"), ([["a"]], "a"), (7, "7")):
        with pytest.raises(
            ArgumentError, match=rf"texts\[1\]: expected a text or a list of words.*{got}"
        ):
            kind_of("tokens").encode(["a", item])
