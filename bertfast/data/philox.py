"""Every draw of the data: Philox-4x32-10 of (seed, purpose, epoch, index), in numpy. The function is that of dropout
(`ops/_philox.py`); nothing here has a state."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from ..errors import ArgumentError

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK = 8192  # counters at a time: what a round touches stays in the second cache
WORD = 1 << 32  # how many values a word has


class Purpose(IntEnum):
    """What a draw is for; a purpose is never used for two things."""

    HELD_OUT = 1
    TARGET = 2
    FOLLOWS = 3
    PAIR = 4
    ORDER = 5
    REPLACEMENT = 6
    NGRAM = 7
    SHUFFLE = 8
    DROPOUT = 9
    SPLIT = 10


def draw(
    seed: int,
    purpose: Purpose,
    epoch: int,
    index: np.ndarray | int,
    block: np.ndarray | int = 0,
) -> list[np.ndarray]:
    """Four words, uint64 arrays of uniform 32-bit values, for each (index, block); both broadcast.

    Args:
        seed: 0 to 2**64 - 1. epoch: 0 to 2**32 - 1.
        index: of an example, a sentence or a document, below 2**56.
        block: for an index that needs more than four words, below 2**32.
    """
    index, block = np.broadcast_arrays(
        np.asarray(index, dtype=np.uint64), np.asarray(block, dtype=np.uint64)
    )
    high = (index >> _HALF) << np.uint64(8) | np.uint64(purpose)
    epochs = np.broadcast_to(np.uint64(epoch), index.shape)
    return philox((block, index & _MASK, epochs, high), seed)


def philox(counter: tuple[np.ndarray, ...], seed: int) -> list[np.ndarray]:
    """Four output words for four uint64 arrays [...] of 32-bit values of one shape, and a 64-bit seed."""
    shape = counter[0].shape
    words = [np.ascontiguousarray(c).reshape(-1).copy() for c in counter]
    for start in range(0, words[0].size, _BLOCK):
        _rounds([word[start : start + _BLOCK] for word in words], seed)
    return [word.reshape(shape) for word in words]


def _rounds(words: list[np.ndarray], seed: int) -> None:
    """The ten rounds, in place."""
    c0, c1, c2, c3 = words
    first, second = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=first)
        np.multiply(c2, _MULTIPLIERS[1], out=second)
        np.right_shift(second, _HALF, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.bitwise_and(second, _MASK, out=c1)
        np.right_shift(first, _HALF, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(first, _MASK, out=c3)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF


def below(word: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """int64 numbers of 0 to count - 1, count at most 2**31, uniform to count / 2**32."""
    return (word * np.asarray(count, dtype=np.uint64) >> _HALF).astype(np.int64)


def chance(word: np.ndarray, share: float) -> np.ndarray:
    """bool: true with probability `share`."""
    return word < np.uint64(round(share * WORD))


def check_seed(seed: int) -> int:
    """The seed. Raises ArgumentError unless it has 64 bits."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ArgumentError("seed", "a whole number from 0 to 2**64 - 1", repr(seed))
    return seed
