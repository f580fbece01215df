"""Labels checked, and the losses on them: transformers' definitions, in fp32, with `num_items_in_batch`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import BertConfig
from ..errors import ArgumentError
from ..packing import pack, take
from ..parts.inputs import check_device, describe, values_readable

IGNORED = -100  # the label of what has none
_INTEGERS = (torch.int64, torch.int32)
Items = int | Tensor | None


def class_labels(
    name: str, labels: Tensor, shape: tuple[int, ...], classes: int | None, device: torch.device
) -> Tensor:
    """Integer labels as int64 of `shape` ([B] may come as [B,1]), each in [0, classes) or `IGNORED` (None: any).

    Raises:
        ArgumentError: a wrong dtype, shape, device, or (on the CPU) value.
    """
    column = (*shape, 1) if len(shape) == 1 else shape
    fits = isinstance(labels, Tensor) and tuple(labels.shape) in (shape, column)
    if not fits or labels.dtype not in _INTEGERS:
        raise ArgumentError(name, f"an int64 or int32 tensor {list(shape)}", describe(labels))
    check_device(name, labels, device)
    labels = labels.reshape(shape).long()
    if classes is not None and values_readable(labels):
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            got = f"{int(labels[tuple(place)])} at {place}"
            raise ArgumentError(name, f"labels in [0, {classes}) or {IGNORED}", got)
    return labels


def labelled(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of x [N,H] that have a label, and those labels."""
    chosen = pack((labels != IGNORED)[None], 1, labels.shape[0], labels.device)
    return take(x[None], chosen), take(labels[None], chosen)


def cross_entropy(
    logits: Tensor, labels: Tensor, num_items: Items = None, ignored: int = IGNORED
) -> Tensor:
    """Mean of -log softmax(logits [N,C])[label] where there is a label (nan if nowhere), or its sum / num_items."""
    reduction = "mean" if num_items is None else "sum"
    loss = F.cross_entropy(wide(logits), labels, ignore_index=ignored, reduction=reduction)
    return divided(loss, num_items)


def by_problem(
    config: BertConfig, logits: Tensor, labels: Tensor, num_items: Items = None
) -> Tensor:
    """The loss of logits [B,C] by config.problem_type, which is inferred from the first labels where it is None."""
    rows, classes = logits.shape
    problem = config.problem_type or infer_problem(classes, labels)
    if config.problem_type is None and not torch.compiler.is_compiling():
        config.problem_type = problem
    if problem == "single_label_classification":
        labels = class_labels("labels", labels, (rows,), classes, logits.device)
        return cross_entropy(logits, labels, num_items)
    targets = _targets(labels, logits, problem)
    loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    reduction = "mean" if num_items is None else "sum"
    return divided(loss(wide(logits), targets, reduction=reduction), num_items)


def infer_problem(classes: int, labels: Tensor) -> str:
    """transformers' rule: one output is regression, integer labels are classes, other labels are several at once."""
    if classes == 1:
        return "regression"
    integers = isinstance(labels, Tensor) and labels.dtype in _INTEGERS
    return "single_label_classification" if integers else "multi_label_classification"


def _targets(labels: Tensor, logits: Tensor, problem: str) -> Tensor:
    """Labels that are numbers, in the shape of the logits [B,C] and the dtype of the loss."""
    shape = tuple(logits.shape)
    flat = (shape[0],) if shape[1] == 1 else shape
    if not isinstance(labels, Tensor) or tuple(labels.shape) not in (shape, flat):
        expected = f"a tensor {list(shape)} for problem_type {problem!r}"
        raise ArgumentError("labels", expected, describe(labels))
    check_device("labels", labels, logits.device)
    targets = labels.reshape(shape).to(wide(logits).dtype)
    if problem == "multi_label_classification" and values_readable(targets) and targets.numel():
        low, high = (value.item() for value in torch.aminmax(targets))
        if low < 0 or high > 1:
            raise ArgumentError("labels", "values from 0 to 1", f"values from {low:g} to {high:g}")
    return targets


def span(logits: Tensor, real: Tensor | None, positions: Tensor, num_items: Items = None) -> Tensor:
    """Cross entropy of the place [B] that is right among the columns of [B,S].

    A place outside the row or at padding (`real` [B,S] is False) is ignored, a negative one counts as 0.
    """
    columns = logits.shape[1]
    positions = positions.clamp(0, columns)
    if real is not None:
        inside = real.gather(1, positions.clamp(max=columns - 1)[:, None]).squeeze(1)
        positions = positions.masked_fill(~inside, columns)
    return cross_entropy(logits, positions, num_items, ignored=columns)


def items(num_items: Items, device: torch.device, name: str = "num_items_in_batch") -> Items:
    """The argument as the losses take it.

    Raises:
        ArgumentError: neither None nor one number that is not negative.
    """
    if isinstance(num_items, Tensor) and num_items.numel() == 1:
        return num_items.reshape(()).to(device)
    whole = isinstance(num_items, int) and not isinstance(num_items, bool) and num_items >= 0
    if num_items is not None and not whole:
        got = describe(num_items) if isinstance(num_items, Tensor) else repr(num_items)
        raise ArgumentError(name, "None, a count, or a tensor with one", got)
    return num_items


def divided(total: Tensor, num_items: Items) -> Tensor:
    """A sum over the number of items it counts for; a mean (None) as it is."""
    return total if num_items is None else total / num_items


def wide(x: Tensor) -> Tensor:
    """x in the dtype of losses: fp32, float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
