"""Examples with labels as the loop's task, and a model's outputs of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.order import Piece
from ..data.sequences import Batch, Sequences
from .kinds.base import Kind, Targets


class Supervised:
    """What is trained on, or asked about: sequences, and where they are known what is right.

    An example of the loop is one sequence, or with a kind's `group` so many; every epoch has the same ones.

    Args:
        kind: of the task. sequences: from `Kind.encode`. targets: from `Kind.targets`; None to predict.
    """

    def __init__(self, kind: Kind, sequences: Sequences, targets: Targets | None = None):
        self.kind, self.sequences, self.targets = kind, sequences, targets
        self._lengths = np.add.reduceat(
            sequences.lengths, np.arange(0, len(sequences), kind.group)
        ).astype(np.int32)

    def examples(self, epoch: int) -> int:
        return len(self._lengths)

    def lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each example: int32 [examples]."""
        return self._lengths

    def totals(self, pieces: Sequence[Piece]) -> dict[str, float]:
        """What the loss of a step is divided by; 1 where nothing in it is counted, and the loss is 0."""
        if self.targets is None:
            return {"items": 1.0}
        items = sum(self.targets.items[piece.indices].sum() for piece in pieces)
        return {"items": float(items) or 1.0}

    def batch(self, pieces: Sequence[Piece]) -> Batch:
        """The examples of the pieces, in this order, packed."""
        group, count = self.kind.group, len(self.sequences)
        indices = np.concatenate([piece.indices for piece in pieces])
        epochs = np.concatenate([np.full(len(p.indices), p.epoch) for p in pieces])
        rows = (indices[:, None] * group + np.arange(group)).ravel()
        example_ids = np.repeat(epochs, group).astype(np.int64) * count + rows
        return self.sequences.batch(rows, example_ids, self._labels(indices, rows))

    def _labels(self, indices: np.ndarray, rows: np.ndarray) -> dict[str, Tensor]:
        if self.targets is None:
            return {}
        found = {k: torch.from_numpy(v[indices]) for k, v in self.targets.examples.items()}
        if self.targets.tokens:
            places = self.sequences.places(rows)
            found |= {k: torch.from_numpy(v[places])[None] for k, v in self.targets.tokens.items()}
        return found

    def forward(self, model: nn.Module, batch: Batch, totals: Mapping[str, float]) -> Any:
        """The head's output, with a loss where there are labels."""
        more = {"num_choices": self.kind.group} if self.kind.group > 1 else {}
        if batch.labels:
            more |= {**batch.labels, "num_items_in_batch": torch.tensor(totals["items"])}
        return model(**batch.inputs, **more)

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, float], measured: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `training.loop.Task`."""
        output = self.forward(model, batch, totals)
        loss = self.kind.loss(output, batch, totals["items"])
        counted = {"loss": loss.detach()}
        with torch.no_grad():
            right = self.kind.right(output, batch)
        if right is not None:
            counted |= {"right": right[0], "asked": torch.tensor(right[1])}
        return loss, counted

    def metrics(
        self, counted: Mapping[str, float], totals: Mapping[str, float]
    ) -> dict[str, float]:
        found = {"loss": counted["loss"]}
        if "right" in counted:
            found["accuracy"] = counted["right"] / max(counted["asked"], 1)
        return found

    @torch.no_grad()
    def outputs(
        self, model: nn.Module, parts: Sequence[np.ndarray], device: torch.device
    ) -> tuple[dict[int, np.ndarray], float]:
        """The logits of each sequence, by its number, and the loss where there are labels.

        Args:
            parts: numbers of the examples of each batch.
        """
        totals = self.totals([Piece(0, np.arange(self.examples(0)))])
        found, loss = {}, 0.0
        for indices in parts:
            batch = self.batch([Piece(0, indices)]).to(device)
            output = self.forward(model, batch, totals)
            if batch.labels:
                loss += float(self.kind.loss(output, batch, totals["items"]))
            rows = (indices[:, None] * self.kind.group + np.arange(self.kind.group)).ravel()
            found |= zip(rows.tolist(), self.kind.outputs(output, batch), strict=True)
        return found, loss
