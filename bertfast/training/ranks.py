"""Which sequences of a step a process computes, and in which parts. A function of lengths alone, so that every process
knows what all others do."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np


def work(lengths: np.ndarray, config: Any) -> np.ndarray:
    """Multiply-adds of each sequence in a layer of a BertConfig, float64: a * length + b * length²."""
    lengths, hidden, inner = lengths.astype(float), config.hidden_size, config.intermediate_size
    return lengths * (4 * hidden**2 + 2 * hidden * inner) + 2 * hidden * lengths**2


def share(cost: np.ndarray, parts: int) -> list[np.ndarray]:
    """Places of `cost`, shared out so that the parts' sums are nearly equal: the costliest first, each to the part that
    has least (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969). Sorted places; parts <= len(cost)."""
    heap = [(0.0, 0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for place in np.argsort(-cost, kind="stable"):
        total, count, part = heapq.heappop(heap)
        found[part].append(int(place))
        heapq.heappush(heap, (total + float(cost[place]), count + 1, part))
    return [np.array(sorted(places), dtype=np.int64) for places in found]


def parts_of_step(
    lengths: np.ndarray, cost: np.ndarray, processes: int, micro_tokens: int
) -> list[list[np.ndarray]]:
    """For each process the micro-batches of a step: places of its sequences. All processes have equally many.

    Args:
        lengths: of the step's sequences, of which there are as many as processes at least.
        micro_tokens: the most tokens of a micro-batch, where its sequences allow that.
    """
    shares = share(cost, processes)
    most = min(map(len, shares))
    least = max(math.ceil(int(lengths[places].sum()) / micro_tokens) for places in shares)
    for count in range(min(max(least, 1), most), most + 1):
        found = [[places[own] for own in share(cost[places], count)] for places in shares]
        if max(int(lengths[p].sum()) for parts in found for p in parts) <= micro_tokens:
            break
    return found
