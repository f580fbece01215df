"""The accuracy check for what `bounds` has no sizes of: a whole model, its gradients, what it has learnt.

The results of a run are one vector here, each tensor divided by its largest value (a power of 2, so that no bit is
lost), and S is 1. So one number that eager torch has right by luck does not stand alone. What is nearly nothing beside
the others is divided by a hundredth of their largest. A bias is divided by what divides its weight, if that is more:
their gradients are sums of the same terms, and that of a key's bias, or of one that all choices share, is 0 but for
rounding. All that a model computes of one rounding has its error, so a tensor counts as one sample, not as many as it
has elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bertfast.tuning.accuracy import Expected, compare

FLOOR = 0.01


def near(label: str, got: Any, exact: Any, eager: Any, rounded: torch.dtype | None = None) -> None:
    """Apply the accuracy check to all that a run gives.

    Args:
        got: a tensor, or tensors in mappings and sequences.
        exact: the same, of the same computation in float64.
        eager: the same, of plain torch (transformers) in the dtype under test. Where that is float64, of float32: the
            error is taken to be as many roundings.
        rounded: the dtype that products are rounded to, where the results have another (autocast).

    Raises:
        AssertionError: Names, shapes or dtypes differ, or an error is above the tolerance.
    """
    found, right, other = (dict(_tensors(value)) for value in (got, exact, eager))
    assert found.keys() == right.keys() == other.keys(), (
        f"{label}: {list(found)}, expected {list(right)}, eager {list(other)}"
    )
    sizes = {name: t.abs().max().item() for name, t in right.items() if t.numel()}
    largest = max(sizes.values(), default=0.0)
    columns: tuple[list, ...] = ([], [], [])
    worst, name_of_worst = -1.0, ""
    for name, value in right.items():
        mine, its = found[name], other[name]
        assert mine.shape == value.shape == its.shape, (
            f"{label} {name}: shape {tuple(mine.shape)}, expected {tuple(value.shape)}"
        )
        if mine.dtype == torch.float64:
            its = value + (its.double() - value) * _ROUNDINGS
        assert mine.dtype == its.dtype, f"{label} {name}: {mine.dtype}, expected {its.dtype}"
        size = sizes.get(name.removesuffix("bias") + "weight", 0.0)
        scale = _power_of_2(max(size, sizes.get(name, 0.0), FLOOR * largest))
        plain = (t.detach().as_subclass(Tensor) for t in (mine, value.double(), its))
        parts = [t.flatten() / scale for t in plain]
        error = (parts[0].double() - parts[1]).abs().nan_to_num(nan=torch.inf)
        if error.numel() and error.max() > worst:
            worst, name_of_worst = error.max().item(), name
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    mine, value, its = (torch.cat(column) for column in columns)
    eps = torch.finfo(rounded or its.dtype).eps / torch.finfo(its.dtype).eps  # which compare knows
    compare(
        f"{label}, the largest error in {name_of_worst or 'it'}",
        mine,
        Expected(value, its, torch.full_like(value, eps)),
        samples=len(right),
    )


_ROUNDINGS = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


def _power_of_2(size: float) -> float:
    """The next one that is not below."""
    return 2.0 ** math.ceil(math.log2(size)) if size else 1.0


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, floating-point tensor) of all that a value holds; None is nothing."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}".lstrip("."))
    elif value is not None:
        for index, part in enumerate(value):
            yield from _tensors(part, f"{name}[{index}]")
