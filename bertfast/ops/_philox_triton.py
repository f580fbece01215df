"""Dropout's bits in Triton: Philox-4x32-10 as `_philox.py` defines it, one call for 8 elements."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _round(c0, c1, c2, c3, k0, k1):
    high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
    high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
    return high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0


@triton.jit
def _kept(word, next_word, threshold):
    """What the four halves of two words decide, as bits 0 to 3: low half first."""
    bits = ((word & 0xFFFF).to(tl.int32) >= threshold).to(tl.int32)
    bits |= ((word >> 16).to(tl.int32) >= threshold).to(tl.int32) << 1
    bits |= ((next_word & 0xFFFF).to(tl.int32) >= threshold).to(tl.int32) << 2
    return bits | ((next_word >> 16).to(tl.int32) >= threshold).to(tl.int32) << 3


@triton.jit
def counter_row(examples_ptr, sequence, sequences):
    """What tells sequences apart: the low word of the example's id, int32 like `sequence`, or that index without ids.

    What lies behind the last of the `sequences` keeps its index.
    """
    if examples_ptr is None:
        return sequence
    else:
        exists = sequence < sequences
        example = tl.load(examples_ptr + sequence, mask=exists, other=0).to(tl.int32)
        return tl.where(exists, example, sequence)


@triton.jit
def keep_mask(seed, i_block, j, head, row, threshold, BLOCK_I: tl.constexpr):
    """Which elements are kept: a bool tile [J, BLOCK_I].

    Args:
        seed: int64. threshold: `_philox.threshold(p)`.
        i_block: the first i of the tile, a multiple of 8; i is the feature, or the key.
        j: [J, 1] int32: the position inside the sequence, or the query.
        head, row: the head (0 for hidden states) and the `counter_row`: scalars or [J, 1].
        BLOCK_I: columns of the tile, a multiple of 8.
    """
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros([j.shape[0], BLOCK_I // 8], tl.uint32)
    c0 = zero + (i_block // 8 + tl.arange(0, BLOCK_I // 8)).to(tl.uint32)[None, :]
    c1 = zero + j.to(tl.uint32)
    c2 = zero + head
    c3 = zero + row
    for _ in tl.static_range(10):
        c0, c1, c2, c3 = _round(c0, c1.to(tl.uint32), c2, c3.to(tl.uint32), k0, k1)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    # Decisions travel as bits, 4 in a word: where layouts change that is little, and the join keeps Triton from moving
    # the change ahead of the rounds, which 4 threads would then compute alike.
    bits = tl.join(_kept(c0, c1, threshold), _kept(c2, c3, threshold))
    bits = tl.reshape(bits, [j.shape[0], BLOCK_I // 4])
    keep = (bits[:, :, None] >> tl.arange(0, 4)[None, None, :]) & 1
    return tl.reshape(keep, [j.shape[0], BLOCK_I]) != 0
