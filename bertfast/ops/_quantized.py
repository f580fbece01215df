"""Weights of products in int8: only the C++ kernels' layout of them is kept (`model.quantize("int8")`).

weight[n, k] = scale[n, k // group] · int8[n, k], symmetric, but for a few outlier columns, which stay in float32. What
reads such a weight rounds x row by row, `group` columns at a time, to int8 (csrc/product/int8.h).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import extension
from ..errors import UnsupportedError
from ._weights import KeptParameter

MOST_COLUMNS = 2**16 - 1  # of which a sum fits int32


class Columns(NamedTuple):
    """How the columns of x are treated by the weights that read it, alike by all of them.

    Fields:
        outliers: int32 [m], ascending: the columns that stay in float.
        group: so many neighbouring columns have a scale of their own, in each row of x and each output of a weight; a
            multiple of 4.
    """

    outliers: Tensor
    group: int


class Int8Tensors(NamedTuple):
    """A quantized weight [n, k] as it is saved: the same for every instruction set.

    Fields:
        weight: int8 [n, k], within ±127; outlier columns are zeros.
        scale: float32 [n, groups].
        outlier_weight: float32 [n, m].
    """

    weight: Tensor
    scale: Tensor
    outlier_weight: Tensor
    columns: Columns

    def dequantized(self) -> Tensor:
        """float32 [n, k]."""
        each = self.scale.repeat_interleave(self.columns.group, 1)[:, : self.weight.shape[1]]
        weight = self.weight.float() * each
        weight[:, self.columns.outliers.long()] = self.outlier_weight
        return weight


class PackedInt8:
    """A quantized weight [n, k] in the layout of one variant of the C++ kernels.

    Attributes:
        dtype: that of the weight that it stands for.
        handle: int64 tensor of addresses, what kernels get in the place of a weight (csrc/product/int8_weight.h).
    """

    def __init__(self, tensors: Int8Tensors, dtype: torch.dtype):
        self.dtype = dtype
        self.n, self.k = tensors.weight.shape
        self.columns, self.variant = tensors.columns, extension.cpu.variant()
        width, fold, offset = extension.cpu.int8_layout()
        self._scale = _padded(tensors.scale, width).t().contiguous()
        weight = _padded(_padded(tensors.weight, width).t(), fold)  # [k, n], with both made whole
        words = weight.unflatten(0, (-1, fold)).unflatten(2, (-1, width))
        self._panels = words.permute(2, 0, 3, 1).contiguous()
        sums = [part.sum(0, dtype=torch.int32) for part in weight.split(self.columns.group)]
        self._start = torch.stack(sums) * -offset
        floats = _padded(tensors.outlier_weight, width).unflatten(0, (-1, width))
        self._floats = floats.transpose(1, 2).contiguous()
        self._outliers = self.columns.outliers.contiguous()
        self.handle = torch.frombuffer(bytearray(self._described()), dtype=torch.int64).clone()

    def _described(self) -> bytes:
        return extension.cpu.int8_weight(
            {
                "panels": self._panels.data_ptr(),
                "start": self._start.data_ptr(),
                "scale": self._scale.data_ptr(),
                "outlier": self._outliers.data_ptr(),
                "outlier_weight": self._floats.data_ptr(),
                "group": self.columns.group,
                "outliers": len(self._outliers),
            }
        )

    @property
    def nbytes(self) -> int:
        """What is kept."""
        kept = (self._panels, self._start, self._scale, self._floats)
        return sum(tensor.nbytes for tensor in kept)

    def tensors(self) -> Int8Tensors:
        """What it was made of, bit for bit."""
        weight = self._panels.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[: self.n, : self.k]
        floats = self._floats.transpose(1, 2).flatten(0, 1)[: self.n]
        return Int8Tensors(
            weight.contiguous(),
            self._scale.t()[: self.n].contiguous(),
            floats.contiguous(),
            self.columns,
        )

    def cast(self, dtype: torch.dtype) -> QuantizedParameter:
        """The same as a parameter that stands for a weight in `dtype`."""
        packed = copy.copy(self)
        packed.dtype = dtype
        return QuantizedParameter(packed)

    def check_variant(self) -> None:
        if self.variant != extension.cpu.variant():
            raise UnsupportedError(
                f"this weight was quantized for the instruction set {self.variant}, and {extension.cpu.variant()} is "
                "in use now. Save the model and load it under the other instruction set."
            )


def _padded(tensor: Tensor, multiple: int) -> Tensor:
    """With rows of zeros up to a whole multiple."""
    rest = -tensor.shape[0] % multiple
    return (
        torch.cat((tensor, tensor.new_zeros(rest, *tensor.shape[1:]))) if rest else tensor.clone()
    )


class QuantizedParameter(KeptParameter):
    """Stands where a weight was of which only the int8 form is kept (`model.quantize("int8")`).

    `packed` is the kept form. Shape and dtype are those of the weight that it stands for.
    """

    how = (
        "quantized to int8, the weight itself is gone. Load the checkpoint again to read or change it; "
        "save_pretrained() writes the int8 form"
    )
    stride_code = -1  # kInt8
    packed: PackedInt8

    def __new__(cls, packed: PackedInt8) -> QuantizedParameter:
        self = cls.standing_for((packed.n, packed.k), packed.dtype)
        self.packed = packed
        return self

    @classmethod
    def operands(cls, weights: Sequence[QuantizedParameter]) -> list[Tensor]:
        """Their handles. Raises UnsupportedError."""
        first = weights[0].packed
        for weight in weights:
            weight.packed.check_variant()
            if not _alike(weight.packed.columns, first.columns):
                raise UnsupportedError(
                    "these weights read the same rows, but were quantized apart, with other outlier columns. Quantize "
                    "query, key and value together, as model.quantize does."
                )
        return [weight.operand() for weight in weights]

    def operand(self) -> Tensor:
        """What a kernel reads."""
        return self.packed.handle

    def unpack(self) -> Tensor:
        """The numbers that the int8 form stands for [n, k], rounded to its dtype."""
        return self.packed.tensors().dequantized().to(self.packed.dtype)

    def __repr__(self, *, tensor_contents=None) -> str:
        kept = self.packed
        return f"QuantizedParameter([{kept.n}, {kept.k}], {kept.dtype}, int8 for {kept.variant})"

    def __deepcopy__(self, memo) -> QuantizedParameter:
        # a packed form is never written to
        return QuantizedParameter(self.packed)

    def __reduce_ex__(self, protocol):
        return _rebuilt, (tuple(self.packed.tensors()), self.packed.dtype)


def _rebuilt(tensors: tuple, dtype: torch.dtype) -> QuantizedParameter:
    return quantized(Int8Tensors(*tensors), dtype)


def quantized(tensors: Int8Tensors, dtype: torch.dtype) -> QuantizedParameter:
    """The parameter that computes with `tensors` and stands for a weight in `dtype`."""
    return QuantizedParameter(PackedInt8(tensors, dtype))


def round_weight(weight: Tensor, columns: Columns) -> Int8Tensors:
    """`weight` [n, k], which nothing refuses: a scale for each output and group, and the nearest integers."""
    weight = weight.detach().float()
    outliers = columns.outliers.long()
    floats, rest = weight[:, outliers].clone(), weight.clone()
    rest[:, outliers] = 0
    parts = rest.split(columns.group, 1)
    scale = torch.stack([part.abs().amax(1) for part in parts], 1) / 127
    scale = torch.where(scale < 2.0**-120, 1.0, scale)  # what is so small becomes zeros
    rounded = [p.div(s[:, None]).round_() for p, s in zip(parts, scale.unbind(1), strict=True)]
    return Int8Tensors(
        torch.cat(rounded, 1).clamp_(-127, 127).to(torch.int8), scale, floats, columns
    )


def refusal(weight: Tensor) -> str | None:
    """Why no int8 can be made of a weight [n, k], or None."""
    if isinstance(weight, QuantizedParameter):
        return "it is quantized already"
    if reason := extension.refuses(weight):
        return reason
    if weight.shape[1] > MOST_COLUMNS:
        return f"it has {weight.shape[1]} columns, int8 sums hold {MOST_COLUMNS}"
    return None if weight.isfinite().all() else "it holds inf or NaN"


def _alike(one: Columns, other: Columns) -> bool:
    same = one is other or one.outliers is other.outliers or one.outliers.equal(other.outliers)
    return same and one.group == other.group
