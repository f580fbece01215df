"""Which tokens an example has: the pair rule beside a plain loop, and the statistics of what is drawn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from bertfast.data.parts import documents_of
from bertfast.data.plan import Pairs, Segments, lengths
from bertfast.data.shards import Documents
from bertfast.errors import ArgumentError
from bertfast.tasks.pretraining import Pretraining
from harness.stores import write_store

UNLIKELY = 1e-6  # the least probability that a statistic may have


def pairs(store, documents=None, seed=1, epoch=0, length=128, hard=0.0, short=0.0) -> Pairs:
    return Pairs(store, documents, seed, epoch, length=length, hard=hard, short=short)


def borders(store) -> tuple[np.ndarray, np.ndarray]:
    return (
        store.document_starts.range(0, store.documents),
        store.sentence_starts.range(0, store.sentences),
    )


def chunks(store, most: int) -> list[tuple[int, int]]:
    """First and last sentence of each chunk, by the rule's words."""
    documents, tokens = borders(store)
    found = []
    for start, end in pairwise(documents):
        own = []
        while start < end:
            stop = start + 1
            while stop < end and (stop < start + 2 or tokens[stop + 1] - tokens[start] <= most):
                stop += 1
            own.append((start, stop))
            start = stop
        if len(own) > 1 and own[-1][1] - own[-1][0] == 1:
            (first, _), (_, last) = own[-2:]
            own[-2:] = [(first, last)]
        found += own
    return found


@pytest.mark.parametrize("length", [5, 16, 40, 128])
def test_chunks_are_those_of_the_rule(store, length):
    plan = pairs(store, length=length)
    found = list(zip(plan._start, plan._start + plan._sentences, strict=True))
    assert found == chunks(store, length - 3)


@pytest.mark.parametrize("hard", [0.0, 0.5])
@pytest.mark.parametrize("length", [5, 24, 128])
def test_sides(store, length, hard):
    """Every side is what the rule says, shortened from the longer one."""
    plan = pairs(store, length=length, hard=hard)
    documents, tokens = borders(store)
    document = np.repeat(np.arange(store.documents), np.diff(documents))
    sentence_of = np.repeat(np.arange(store.sentences), np.diff(tokens))
    most, near = length - 3, 0
    spans = plan.spans(np.arange(len(plan)))
    for i, (start, stop) in enumerate(chunks(store, most)):
        a, b = spans.first[i], spans.second[i]
        first = range(a, a + spans.first_length[i])
        second = range(b, b + spans.second_length[i])
        assert len(first) >= 1
        assert len(second) >= 1
        assert len(first) + len(second) <= most
        assert start <= sentence_of[first[0]]
        assert sentence_of[first[-1]] < stop
        last, next_first = sentence_of[first[-1]], sentence_of[second[0]]
        if spans.follows[i]:
            assert first[-1] < second[0] <= second[-1] < tokens[stop]
            if tokens[stop] - tokens[start] <= most:  # nothing was cut
                assert (first[0], second[-1] + 1) == (tokens[start], tokens[stop])
                assert first[-1] + 1 == second[0] == tokens[next_first]
            else:
                assert len(first) + len(second) == most
            continue
        assert document[next_first] == document[sentence_of[second[-1]]]
        if document[next_first] == document[start]:
            near += 1
            assert second[-1] < first[0] or next_first > last + 1
    assert (near > 0) == bool(hard)


@pytest.mark.parametrize("epoch", range(3))
def test_half_follow_exactly(store, large, epoch):
    for found in (store, large):
        plan = pairs(found, epoch=epoch)
        assert plan._follows.sum() == len(plan) // 2
        spans = plan.spans(np.arange(len(plan)))
        sizes = 3 + spans.first_length + spans.second_length
        np.testing.assert_array_equal(lengths(plan), sizes)


def test_which_follow_is_independent(large):
    """Of the epoch before, of the neighbouring seed, and of the example before."""
    plan = pairs(large)
    others = {
        "epoch": pairs(large, epoch=1)._follows,
        "seed": pairs(large, seed=2)._follows,
        "example": np.roll(plan._follows, 1),
    }
    for name, other in others.items():
        table = np.histogram2d(plan._follows, other, bins=2)[0]
        assert stats.chi2_contingency(table).pvalue > UNLIKELY, name


def test_false_sides_are_of_any_other_document(large):
    plan = pairs(large)
    false = np.flatnonzero(~plan._follows)
    spans = plan.spans(false)
    ends = large.sentence_starts.range(0, large.sentences)[borders(large)[0]]
    own, other = (ends.searchsorted(side, side="right") - 1 for side in (spans.first, spans.second))
    assert not (own == other).any()
    counts = np.bincount(other, minlength=large.documents)
    hundreds = counts[: large.documents // 100 * 100].reshape(-1, 100).sum(1)
    assert stats.chisquare(hundreds).pvalue > UNLIKELY


def test_cuts_are_uniform(large):
    """Among chunks of five sentences that nothing shortened."""
    plan = pairs(large)
    index = np.flatnonzero(plan._follows & (plan._sentences == 5))
    spans = plan.spans(index)
    tokens = large.sentence_starts
    whole = spans.first + spans.first_length == spans.second
    cut = tokens.last_at_most(spans.second[whole]) - plan._start[index][whole]
    assert whole.sum() > 1000
    assert stats.chisquare(np.bincount(cut, minlength=5)[1:]).pvalue > UNLIKELY


def test_hard_share(large):
    plan = pairs(large, hard=0.25)
    spans = plan.spans(np.flatnonzero(~plan._follows))
    ends = large.sentence_starts.range(0, large.sentences)[borders(large)[0]]
    own, other = (ends.searchsorted(side, side="right") - 1 for side in (spans.first, spans.second))
    assert stats.binomtest(int((own == other).sum()), len(own), 0.25).pvalue > UNLIKELY


def test_longer_side_is_cut_at_either_end(large):
    plan = pairs(large, length=32)
    index = np.flatnonzero(plan._follows)
    spans = plan.spans(index)
    tokens, start = large.sentence_starts, plan._start[index]
    middle = tokens[tokens.last_at_most(spans.first) + 1]
    two = plan._sentences[index] == 2
    cut = two & (spans.first_length < middle - tokens[start])
    at_start = spans.first[cut] > tokens[start][cut]
    assert cut.sum() > 1000
    assert stats.binomtest(int(at_start.sum()), int(cut.sum()), 0.5).pvalue > UNLIKELY
    kept = spans.first_length[cut]
    assert (kept >= 15).all()  # never below the half of 29, rounded up


def test_short_share(large):
    """Of one-sided examples that begin documents, a tenth have a target that is uniform from 3 to 126 tokens."""
    plan = Segments(large, None, 1, 0, length=128, short=0.1)
    borders_of_documents = borders(large)[1][borders(large)[0]]
    long = borders_of_documents[:-1][np.diff(borders_of_documents) > 126]
    sizes = plan._size[np.isin(plan._start, long)]
    shorter = sizes[sizes < 126]
    assert stats.binomtest(len(shorter), len(sizes), 0.1 * 123 / 124).pvalue > UNLIKELY
    assert stats.kstest((shorter - 2.5) / 123, "uniform").pvalue > UNLIKELY
    assert shorter.min() <= 9 < 119 <= shorter.max() <= 125


def test_one_side_takes_every_token_once(store):
    plan = Segments(store, None, 1, 0, length=16, short=0.0)
    taken = np.zeros(store.tokens, dtype=int)
    spans = plan.spans(np.arange(len(plan)))
    for start, size in zip(spans.first, spans.first_length, strict=True):
        taken[start : start + size] += 1
    assert taken.max() == 1
    tokens = borders(store)[1][borders(store)[0]]
    sizes = np.diff(tokens)
    assert taken.sum() == (sizes - np.where(sizes % 14 < 3, sizes % 14, 0)).sum()
    assert (spans.first_length <= 14).all()


def test_held_out_documents(large, store):
    """They follow from their numbers: a larger share holds out the same and more, and the parts are all."""
    few = documents_of(large, 0.3, "held-out")
    np.testing.assert_array_equal(documents_of(store, 0.3, "held-out"), few[few < store.documents])
    held = documents_of(large, 0.1, "held-out")
    more = documents_of(large, 0.2, "held-out")
    train = documents_of(large, 0.1, "train")
    assert set(held) < set(more)
    np.testing.assert_array_equal(np.sort(np.concatenate([held, train])), np.arange(3000))
    assert stats.binomtest(len(held), large.documents, 0.1).pvalue > UNLIKELY
    spans = pairs(large, documents=held).spans(np.arange(500))
    ends = large.sentence_starts.range(0, large.sentences)[borders(large)[0]]
    for side in (spans.first, spans.second):
        assert np.isin(ends.searchsorted(side, side="right") - 1, held).all()


def _documents(*counts: int) -> Documents:
    """Documents of so many sentences, of one token each."""
    total = sum(counts)
    return Documents(
        np.full(total, 30), np.ones(total, bool), np.ones(total, int), np.array(counts)
    )


def test_no_pairs_of_one_document_or_of_lone_sentences(tokenizer_folder, tmp_path):
    one = write_store(tmp_path / "one", tokenizer_folder, [_documents(8)])
    with pytest.raises(ArgumentError, match=r"two documents or more.*got 1 in .*next_sentence=Fal"):
        Pretraining(one, seed=1)
    assert Pretraining(one, seed=1, next_sentence=False).examples(0) == 1
    lone = write_store(tmp_path / "lone", tokenizer_folder, [_documents(1, 1, 1, 4)])
    with pytest.raises(ArgumentError, match="got 1 of 4 in .*leave out documents of one sentence"):
        Pretraining(lone, seed=1)
    some = write_store(tmp_path / "some", tokenizer_folder, [_documents(1, 1, 3, 4)])
    found = Pretraining(some, seed=1).collate(range(4), 0)
    assert found.next_sentence_label.tolist() == [1, 1, 0, 0]  # one sentence has no next one
    with pytest.raises(ArgumentError, match="a document of 3 tokens or more"):
        Pretraining(
            write_store(tmp_path / "tiny", tokenizer_folder, [_documents(1, 2)]),
            seed=1,
            next_sentence=False,
        )
