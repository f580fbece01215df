"""The seeds of dropout, from torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _contract


def _fill(seed: Tensor) -> None:
    seed.random_(-(2**63), 2**63 - 1)


# An op of its own, so that a compiled model draws the very seeds that the eager one draws. It
# writes into its argument because torch.compile merges equal calls of a random op that is not one
# of torch's own; two empty tensors are not equal.
_contract.define(
    "fill_seed_(Tensor(a!) seed) -> ()",
    _fill,
    lambda seed: None,
    tags=(torch.Tag.nondeterministic_seeded,),
)


def draw_seed(device: torch.device | str, count: int = 1) -> Tensor:
    """Fresh dropout seeds, int64 [count], from torch's default generator of the device (`torch.manual_seed` repeats
    them).
    """
    seeds = torch.empty(count, dtype=torch.int64, device=device)
    torch.ops.bertfast.fill_seed_(seeds)
    return seeds
