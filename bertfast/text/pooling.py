"""From packed token states to one vector a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ArgumentError

POOLINGS = ("cls", "mean", "max")


def pool(
    x: Tensor, lengths: Sequence[int], pooling: str, normalize: bool = False, skip: int = 0
) -> Tensor:
    """One vector a sequence from packed token states, with no padded copy of them.

    Each vector is computed from its own rows in their order, so it does not depend on the batch.

    Args:
        x: [T,H] token states of the sequences, one after the other.
        lengths: the length of each sequence, on the host; they sum to T.
        pooling: "cls" (first row), "mean" or "max" (over the rows).
        normalize: scale each vector to length 1.
        skip: rows at the start of each sequence that take no part, such as a prompt's.

    Returns:
        [B,H] float32 (float64 for float64), sums in the same; zeros for a sequence without rows.

    Raises:
        ArgumentError: pooling is none of `POOLINGS`.
    """
    check_pooling(pooling)
    x = x if x.dtype == torch.float64 else x.float()
    if skip:
        kept = torch.cat([torch.arange(length) >= skip for length in (*lengths, 0)]).nonzero()[:, 0]
        x = x.index_select(0, _sent(kept, x))
        lengths = [max(length - skip, 0) for length in lengths]
    sizes = torch.tensor(lengths, dtype=torch.int64)
    if pooling == "cls":
        starts = (sizes.cumsum(0) - sizes).clamp(max=max(x.shape[0] - 1, 0))
        some = x if x.shape[0] else x.new_zeros(1, x.shape[1])
        vectors = some.index_select(0, _sent(starts, x))
    else:
        vectors = torch.segment_reduce(x, pooling, lengths=_sent(sizes, x), axis=0, unsafe=True)
    empty = [i for i, length in enumerate(lengths) if length == 0]
    if empty:
        vectors[empty] = 0
    return F.normalize(vectors, dim=1) if normalize else vectors


def _sent(indices: Tensor, x: Tensor) -> Tensor:
    """Indices where x is; the host does not wait for a GPU."""
    return indices.to(x.device, non_blocking=True)


def check_pooling(pooling: Any) -> None:
    if pooling not in POOLINGS:
        raise ArgumentError("pooling", "one of " + ", ".join(POOLINGS), repr(pooling))
