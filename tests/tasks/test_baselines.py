"""What a model is held against, beside plain loops."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from bertfast.data import plan
from bertfast.data.vocabulary import read_vocabulary
from bertfast.tasks import baselines
from bertfast.tasks.baselines import Pairs, bag_of_words, count, fit_threshold, pairs_of
from bertfast.tasks.pretraining import Pretraining
from harness import seeds

ROUNDINGS = 64 * np.finfo(np.float64).eps  # of a sum of some dozens of terms


def tokens_of(store, start, length) -> np.ndarray:
    found = np.empty(length, dtype=np.int64)
    store.copy_tokens(np.array([start]), [length], found, [0])
    return found


@pytest.mark.parametrize("documents", [None, np.array([0, 3, 38, 41, 42, 119])])
def test_counts(store, documents, monkeypatch):
    """Over blocks and shards."""
    monkeypatch.setattr(baselines, "_BLOCK", 500)
    tokens, sentences, total = Counter(), Counter(), 0
    for document in range(store.documents) if documents is None else documents:
        for sentence in range(*store.document_starts[np.array([document, document + 1])]):
            start, end = store.sentence_starts[np.array([sentence, sentence + 1])]
            found = tokens_of(store, start, end - start).tolist()
            tokens.update(found)
            sentences.update(set(found))
            total += 1
    counts = count(store, documents)
    assert counts.total == total
    assert counts.tokens.tolist() == [tokens[i] for i in range(store.vocab_size)]
    assert counts.sentences.tolist() == [sentences[i] for i in range(store.vocab_size)]
    assert counts.tokens.max() > 1 < counts.sentences.max() < counts.tokens.sum()
    assert counts.most_frequent(np.array([counts.tokens.argmax()])) != counts.tokens.argmax()


@pytest.mark.parametrize("hard", [0.0, 1.0])
def test_pairs_are_the_sides_before_masking(store, hard):
    task = Pretraining(store, seed=7, length=32, hard=hard)
    indices = np.arange(0, task.examples(0), 3)
    found = pairs_of(task.collate(indices, 0))
    spans = plan.Pairs(store, None, 7, 0, length=32, hard=hard, short=0).spans(indices)
    assert (found.follows == spans.follows).all()
    for sides, starts, lengths in (
        (found.first, spans.first, spans.first_length),
        (found.second, spans.second, spans.second_length),
    ):
        for side, start, length in zip(sides, starts, lengths, strict=True):
            assert side.tolist() == tokens_of(store, start, length).tolist()


def test_bag_of_words():
    """Beside whole vectors; a side without weight gives 0."""
    draw = np.random.default_rng(seeds.seed())
    idf = draw.random(20)
    idf[0] = 0
    sides = [[draw.integers(0, 20, n) for n in (1, 5, 17, 40)] for _ in range(2)]
    pairs = Pairs(
        [*sides[0], np.zeros(3, dtype=np.int64)], [*sides[1], np.array([0, 1])], np.ones(5, bool)
    )
    found = bag_of_words(idf)(pairs)
    assert found[4] == 0
    for one, other, cosine in zip(*sides, found, strict=False):
        a, b = (np.bincount(side, minlength=20) * idf for side in (one, other))
        norm = np.linalg.norm(a) * np.linalg.norm(b)
        assert abs(cosine * norm - a @ b) <= ROUNDINGS * norm


def test_texts_of_sides(store):
    """Pieces are joined, also where a side begins inside a word; each text is encoded once."""
    words = read_vocabulary(store.tokenizer_folder)[1].tokens
    plain = [i for i, word in enumerate(words) if word.isalpha()][:2]
    piece = next(i for i, word in enumerate(words) if word.startswith("##"))
    asked = []

    def encode(texts, normalize):
        asked.append(texts)
        assert normalize
        return np.eye(len(texts))

    score = baselines.embedded(SimpleNamespace(encode=encode), store)
    one, other = np.array([piece, plain[0]]), np.array([plain[1], piece])
    found = score(Pairs([one, one], [other, one], np.array([True, False])))
    end = words[piece].removeprefix("##")
    assert asked == [[f"{end} {words[plain[0]]}", f"{words[plain[1]]}{end}"]]
    assert found.tolist() == [0, 1]
    score(Pairs([one], [other], np.array([True])))
    assert asked[1:] in ([], [[]])


@pytest.mark.parametrize("kinds", [2, 5, 1000])
def test_threshold_is_the_best_one(kinds):
    """Where many scores are equal, too."""
    draw = np.random.default_rng(seeds.seed(kinds))
    for _ in range(20):
        scores, follows = draw.integers(0, kinds, 12) / kinds, draw.random(12) < 0.5
        every = [((scores >= t) == follows).sum() for t in (*scores, np.inf)]
        found = fit_threshold(scores, follows)
        assert ((scores >= found) == follows).sum() == max(every)
