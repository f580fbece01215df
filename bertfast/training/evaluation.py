"""Held-out examples through a model, with masks that are always the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..data.order import Order, Piece
from . import ranks
from .loop import Task, add, summed
from .processes import Processes

_TOKENS = 8192  # of a batch


def some(task: Task, count: int) -> Piece:
    """`count` examples of the task's epoch 0, or all if there are fewer: always the same, from all over its documents;
    sorted."""
    count = min(count, task.examples(0))
    (piece,) = Order(task.examples, 0, np.array([count])).step(0)
    return Piece(0, np.sort(piece.indices))


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, count: int, processes: Processes) -> dict[str, float]:
    """The task's metrics over `some` examples, shared out to processes. The model is left in eval mode."""
    model.eval()
    piece = some(task, count)
    indices = piece.indices
    totals = task.totals([piece])
    lengths = task.lengths(0)[indices]
    shares = min(processes.count, len(indices))
    parts = ranks.parts_of_step(lengths, lengths.astype(float), shares, _TOKENS)
    mine = parts[
        processes.rank % shares
    ]  # all call the model equally often; extra ones do not count
    counted: dict[str, torch.Tensor] = {}
    for places in mine:
        batch = task.batch([Piece(0, indices[places])]).to(processes.device)
        _, counts = task.loss(model, batch, totals, True)
        add(counted, {name: value * (processes.rank < shares) for name, value in counts.items()})
    return task.metrics(summed(counted, processes), totals)
