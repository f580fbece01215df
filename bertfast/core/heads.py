"""What the task heads compute, as functions of a packed batch's rows: scores, and losses on labels that were checked.

T tokens, B sequences, H hidden, C classes, V vocabulary entries. Losses are computed and returned in fp32 (float64 for
float64). Where `num_items` is given, the sum of a loss is divided by it, so that gradients accumulated over parts of a
batch are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..ops._tanh import tanh
from .batch import PackedBatch, as_operation, dynamic_size, unpack
from .encode import activate, called
from .weights import Call, Linear, MaskedLMWeights, Norm

IGNORED = -100  # the label of what has none
Items = int | Tensor | None


def pool(pooler: Linear | Call, rows: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """tanh(x·Wᵀ + b) of each sequence's first row: [B,H] -> [B,H], zeros for a sequence without tokens.

    A pooler that is no `Linear` is called with [B,1,H] and gives the pooled rows itself. No cu_seqlens: every sequence
    has tokens.
    """
    fused = isinstance(pooler, Linear)
    pooled = tanh(called(pooler, rows)) if fused else pooler(rows[:, None])
    if cu_seqlens is None:
        return pooled
    return pooled.masked_fill((cu_seqlens.diff() == 0)[:, None], 0)


def masked_lm_scores(head: MaskedLMWeights, rows: Tensor) -> Tensor:
    """Scores of every vocabulary entry: [N,H] -> [N,V]."""
    return called(head.decoder, masked_lm_transform(head, rows))


def masked_lm_transform(head: MaskedLMWeights, rows: Tensor) -> Tensor:
    """LN(activation(x·Wᵀ + b)): [N,H] -> [N,H]."""
    fused = isinstance(head.transform, Linear) and isinstance(head.norm, Norm)
    if fused and head.activation is None:
        return ops.gelu_layernorm(rows, *head.transform, *head.norm[:2], eps=head.norm.eps)
    return called(head.norm, activate(head.transform, head.activation, rows))


def masked_lm_loss(
    head: MaskedLMWeights, rows: Tensor, labels: Tensor, num_items: Items = None
) -> Tensor:
    """Mean of -log softmax(scores)[label] over the labelled rows, or its sum / num_items; rows [T,H], labels [T].

    Unlabelled rows are not computed, and the scores [N,V] are never whole in memory (unless the decoder was replaced).
    """
    rows, labels = labelled(rows, labels)
    rows = masked_lm_transform(head, rows)
    if not isinstance(head.decoder, Linear):
        return cross_entropy(called(head.decoder, rows), labels, num_items)
    count = None if num_items is None else 1
    return _divided(
        ops.masked_cross_entropy(rows, *head.decoder, labels, num_items=count), num_items
    )


def labelled(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [N,H] that have a label, and those labels."""
    select = _labelled_op if torch.compiler.is_compiling() else _labelled
    index = select(labels)
    return rows.index_select(0, index), labels.index_select(0, index)


def cross_entropy(
    scores: Tensor, labels: Tensor, num_items: Items = None, ignored: int = IGNORED
) -> Tensor:
    """Mean of -log softmax(scores [N,C])[label] where there is a label (nan if nowhere), or its sum / num_items."""
    return _reduced(F.cross_entropy, scores, labels, num_items, ignore_index=ignored)


def regression(scores: Tensor, targets: Tensor, num_items: Items = None) -> Tensor:
    """Mean squared error of scores [B,C], or its sum / num_items."""
    return _reduced(F.mse_loss, scores, targets.to(fp32(scores).dtype), num_items)


def several_labels(scores: Tensor, targets: Tensor, num_items: Items = None) -> Tensor:
    """Binary cross entropy of scores [B,C] with targets from 0 to 1: its mean, or its sum / num_items."""
    loss = F.binary_cross_entropy_with_logits
    return _reduced(loss, scores, targets.to(fp32(scores).dtype), num_items)


def span_scores(scores: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
    """Scores [T,2] as [B,S,2] with the lowest value at padding, and which positions [B,S] are real (None: all)."""
    columns = unpack(scores, batch)
    if batch.indices is None:
        return columns, None
    real = unpack(torch.ones_like(scores[:, :1]), batch) != 0
    return columns.masked_fill(~real, torch.finfo(scores.dtype).min), real.squeeze(-1)


def span_loss(
    columns: Tensor, real: Tensor | None, positions: Tensor, num_items: Items = None
) -> Tensor:
    """Cross entropy of the position [B] that is right among the columns [B,S].

    A position outside the row or at padding (`real` [B,S] is False) is ignored, a negative one counts as 0.
    """
    length = columns.shape[1]
    positions = positions.clamp(0, length)
    if real is not None:
        inside = real.gather(1, positions.clamp(max=length - 1)[:, None]).squeeze(1)
        positions = positions.masked_fill(~inside, length)
    return cross_entropy(columns, positions, num_items, ignored=length)


def fp32(x: Tensor) -> Tensor:
    """x in the dtype of losses: fp32, float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _reduced(
    loss: Callable[..., Tensor], scores: Tensor, targets: Tensor, num_items: Items, **options: int
) -> Tensor:
    reduction = "mean" if num_items is None else "sum"
    return _divided(loss(fp32(scores), targets, reduction=reduction, **options), num_items)


def _divided(total: Tensor, num_items: Items) -> Tensor:
    return total if num_items is None else total / num_items


def _labelled(labels: Tensor) -> Tensor:
    return (labels != IGNORED).nonzero().squeeze(1)


_labelled_op = as_operation(
    "labelled(Tensor labels) -> Tensor", _labelled, lambda labels: labels.new_empty(dynamic_size())
)
