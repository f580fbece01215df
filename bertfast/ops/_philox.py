"""Dropout's bits: Philox-4x32-10 (Salmon et al., SC 2011) in torch's int64 arithmetic, the
definition for every backend.

The key is a 64-bit seed (low word, high word). The counter is (i // 8, j, head or 0, row): for
hidden states i is the feature and j the position inside the sequence; for attention i is the key
and j the query, both inside the sequence. row is the low word of the example's id where ids are
given, so that the batch that an example is in does not matter, else the sequence's index in the
batch. The four output words give eight 16-bit numbers (word
0 low half, word 0 high half, word 1 low half, ...); element i takes number i % 8 and is dropped if
that is below `threshold(p)`. What is kept is multiplied by `keep_scale(p)`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def threshold(p: float) -> int:
    """The smallest 16-bit number that is kept: round(65536 p), in 0..65536."""
    return round(p * 65536)


def keep_scale(p: float) -> float:
    """What kept values are multiplied by: 65536 / (65536 - threshold), 0 where nothing is kept."""
    kept = 65536 - threshold(p)
    return 65536 / kept if kept else 0.0


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> list[Tensor]:
    """Four output words, int64 tensors of 32-bit values, for broadcastable int64 counters and an int64 seed [1]."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        # The product wraps past 2^63; its bits are right all the same, and the mask undoes the sign
        # of the shift.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((second >> 32) & _MASK) ^ c1 ^ k0, second & _MASK
        c2, c3 = ((first >> 32) & _MASK) ^ c3 ^ k1, first & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _keep(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor, p: float, width: int
) -> Tensor:
    """Keep masks [..., width] for counters [..., ceil(width / 8)]."""
    words = philox(counter, seed)
    numbers = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)
    return (numbers >= threshold(p)).flatten(-2)[..., :width]


def _row(sequence: Tensor, example_ids: Tensor | None) -> Tensor:
    """The counter's row of sequences of these indices; what lies behind the last sequence keeps its index."""
    if example_ids is None:
        return sequence
    return F.pad(example_ids & _MASK, (0, 1), value=example_ids.shape[0])[sequence]


def hidden_keep(
    seed: Tensor,
    p: float,
    cu_seqlens: Tensor,
    tokens: int,
    features: int,
    example_ids: Tensor | None = None,
) -> Tensor:
    """Which elements of packed hidden states [tokens, features] dropout keeps, bool.

    Args:
        seed: int64 [1].
        cu_seqlens: int32 [B+1], where each sequence starts; the last entry is the number of tokens.
        example_ids: int64 [B]; None: a sequence's index.
    """
    token = torch.arange(tokens, device=seed.device)
    sequence = torch.searchsorted(cu_seqlens.long(), token, right=True) - 1
    position, row = token - cu_seqlens.long()[sequence], _row(sequence, example_ids)
    block = torch.arange((features + 7) // 8, device=seed.device)
    counter = (block[None, :], position[:, None], torch.zeros_like(block)[None, :], row[:, None])
    return _keep(counter, seed, p, features)


def attention_keep(
    seed: Tensor,
    p: float,
    sequence: int,
    heads: int,
    length: int,
    example_ids: Tensor | None = None,
) -> Tensor:
    """Which probabilities [heads, query, key] of one sequence dropout keeps, bool [heads, length, length].

    Args:
        sequence: its index in the batch.
        example_ids: as in `hidden_keep`.
    """
    block = torch.arange((length + 7) // 8, device=seed.device)[None, None, :]
    query = torch.arange(length, device=seed.device)[None, :, None]
    head = torch.arange(heads, device=seed.device)[:, None, None]
    row = _row(torch.full_like(block, sequence), example_ids)
    return _keep((block, query, head, row), seed, p, length)


def dropout(x: Tensor, p: float, keep: Tensor | None) -> Tensor:
    """x with what is not kept set to 0 and the rest scaled; x itself where `keep` is None (no dropout)."""
    return x if keep is None else torch.where(keep, x * keep_scale(p), 0.0)
