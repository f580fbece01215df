"""Quantized weights in a checkpoint: what is written of each, and the check of what is read.

In the place of `<module>.weight` stand `<module>.weight_int8` [n,k], `.weight_scale` [n,groups], `.outlier_columns` [m]
and `.outlier_weight` [n,m]; config.json says so in quantization_config. A loader that does not know them misses a
weight, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..ops._quantized import MOST_COLUMNS, Columns, Int8Tensors, QuantizedParameter, quantized

METHOD = "bertfast"
_PARTS = {  # the end of its name -> dtype
    "weight_int8": torch.int8,
    "weight_scale": torch.float32,
    "outlier_columns": torch.int32,
    "outlier_weight": torch.float32,
}


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that bertfast wrote int8 weights."""
    said = config.get("quantization_config")
    return isinstance(said, Mapping) and said.get("quant_method") == METHOD


def said_of(weight: QuantizedParameter) -> dict[str, Any]:
    """The quantization_config of a model that holds such weights."""
    return {"quant_method": METHOD, "bits": 8, "group_size": weight.packed.columns.group}


def group_size(config: Mapping[str, Any]) -> int:
    """From quantization_config. Raises ConfigError."""
    said = config["quantization_config"]
    group = said.get("group_size")
    if said.get("bits") != 8:
        raise ConfigError(f"quantization_config: bits: expected 8, got {said.get('bits')!r}.")
    if not isinstance(group, int) or group < 4 or group % 4:
        raise ConfigError(
            f"quantization_config: group_size: expected a multiple of 4, got {group!r}."
        )
    return group


def written(weight: QuantizedParameter) -> dict[str, Tensor]:
    """The tensors of a weight by the ends of their names, each in memory of its own."""
    tensors = weight.packed.tensors()
    outliers = tensors.columns.outliers.clone()
    parts = (tensors.weight, tensors.scale, outliers, tensors.outlier_weight)
    return dict(zip(_PARTS, parts, strict=True))


def take(
    tensors: dict[str, Tensor], group: int, dtype: torch.dtype | None = None
) -> dict[str, QuantizedParameter]:
    """Remove the parts of quantized weights from the tensors of a checkpoint.

    Args:
        dtype: of the weights that they stand for.

    Returns: by the names of those weights; equal columns are one object.
    Raises CheckpointError: a part is missing or is not what it should be.
    """
    found: dict[str, QuantizedParameter] = {}
    known: dict[tuple[int, ...], Columns] = {}
    for end in [name for name in tensors if name.endswith(".weight_int8")]:
        module = end.removesuffix(".weight_int8")
        parts = {part: _part(tensors, module, part) for part in _PARTS}
        _check(module, group, **parts)
        key = tuple(parts["outlier_columns"].tolist())
        columns = known.setdefault(key, Columns(parts["outlier_columns"], group))
        weight = (parts["weight_int8"], parts["weight_scale"], parts["outlier_weight"])
        found[f"{module}.weight"] = quantized(Int8Tensors(*weight, columns), dtype or torch.float32)
    return found


def _part(tensors: dict[str, Tensor], module: str, part: str) -> Tensor:
    tensor = tensors.pop(f"{module}.{part}", None)
    if tensor is None:
        raise CheckpointError(f"expected the tensor {module}.{part}, it is not there.")
    if tensor.dtype != _PARTS[part]:
        raise CheckpointError(f"{module}.{part}: expected {_PARTS[part]}, got {tensor.dtype}.")
    return tensor


def _check(
    module: str,
    group: int,
    weight_int8: Tensor,
    weight_scale: Tensor,
    outlier_columns: Tensor,
    outlier_weight: Tensor,
) -> None:
    """Raise CheckpointError for shapes that do not fit, or columns that are not there."""
    if weight_int8.ndim != 2 or not 0 < weight_int8.shape[1] <= MOST_COLUMNS:
        got = list(weight_int8.shape)
        raise CheckpointError(f"{module}.weight_int8: expected a matrix, got shape {got}.")
    n, k = weight_int8.shape
    m = outlier_columns.numel()
    shapes = {
        "weight_scale": (n, -(-k // group)),
        "outlier_columns": (m,),
        "outlier_weight": (n, m),
    }
    for part, tensor in zip(shapes, (weight_scale, outlier_columns, outlier_weight), strict=True):
        if tensor.shape != shapes[part]:
            got, expected = list(tensor.shape), list(shapes[part])
            raise CheckpointError(f"{module}.{part}: expected shape {expected}, got {got}.")
    columns = outlier_columns.tolist()
    if sorted(set(columns)) != columns or (columns and not 0 <= columns[0] <= columns[-1] < k):
        raise CheckpointError(
            f"{module}.outlier_columns: expected ascending columns below {k}, got {columns[:8]}."
        )
    if not all(bool(t.isfinite().all()) for t in (weight_scale, outlier_weight)):
        raise CheckpointError(f"{module}: its int8 form holds inf or NaN.")
