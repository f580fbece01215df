"""The draws: Philox-4x32-10, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertfast.data import philox
from bertfast.data.philox import Purpose, below, draw
from bertfast.errors import ArgumentError
from bertfast.ops import _philox
from harness import seeds

# of Random123, the authors' own code: counter, key, result
KNOWN = (
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    found = philox.philox(tuple(np.array([c], dtype=np.uint64) for c in counter), key)
    assert tuple(int(word[0]) for word in found) == expected


def test_equals_dropouts():
    """More counters than are computed at a time."""
    numbers = np.random.default_rng(seeds.seed()).integers(0, 1 << 32, (4, 20000), dtype=np.uint64)
    key = 0xFEDCBA9876543210
    ours = philox.philox(tuple(numbers), key)
    counter = tuple(torch.from_numpy(row.astype(np.int64)) for row in numbers)
    theirs = _philox.philox(counter, torch.tensor([key - (1 << 64)]))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our.astype(np.int64), their.numpy())


def test_every_argument_counts():
    index = np.arange(5)
    words = [
        draw(1, Purpose.PAIR, 0, index),
        draw(2, Purpose.PAIR, 0, index),
        draw(1 << 32, Purpose.PAIR, 0, index),
        draw(1, Purpose.ORDER, 0, index),
        draw(1, Purpose.PAIR, 1, index),
        draw(1, Purpose.PAIR, 0, index, 1),
        draw(1, Purpose.PAIR, 0, index + 5),
        draw(1, Purpose.PAIR, 0, index + (1 << 32)),
        draw(1, Purpose.PAIR, 0, index + (1 << 55)),
    ]
    flat = np.concatenate([np.concatenate(four) for four in words])
    assert len(np.unique(flat)) == flat.size  # two of 180 are equal in one of 300,000 runs
    np.testing.assert_array_equal(draw(1, Purpose.PAIR, 0, 3)[0], words[0][0][3])


def test_below_reaches_both_ends():
    words = np.array([0, (1 << 32) - 1], dtype=np.uint64)
    assert below(words, 7).tolist() == [0, 6]
    assert below(words, np.array([1, 3])).tolist() == [0, 2]


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5, True])
def test_bad_seed(seed):
    with pytest.raises(ArgumentError, match="seed: expected a whole number"):
        philox.check_seed(seed)
