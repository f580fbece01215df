"""The weights of products: as they lie, or prepacked, which is the layout of the C++ kernels alone.

Nothing is kept of a weight that was not prepacked: the kernels read it at each call, so any write to it shows in the
next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import extension
from ..errors import UnsupportedError


@dataclass(frozen=True)
class PackedWeight:
    """A weight [n, k] in the layout of one variant of the C++ kernels (csrc/product/gemm.h)."""

    buffer: Tensor
    n: int
    k: int
    variant: str

    @property
    def dtype(self) -> torch.dtype:
        return self.buffer.dtype

    def unpack(self) -> Tensor:
        """The weight [n, k], bit for bit."""
        self.check_variant()
        weight = torch.empty(self.n, self.k, dtype=self.buffer.dtype)
        places, sizes = (self.buffer.data_ptr(), weight.data_ptr()), (self.n, self.k)
        extension.cpu.unpack_weight(*places, *sizes, *_code_and_threads(weight))
        return weight

    def check_variant(self) -> None:
        if self.variant != extension.cpu.variant():
            raise UnsupportedError(
                f"this weight was prepacked for the instruction set {self.variant}, and {extension.cpu.variant()} is "
                "in use now. Unpack the model before the instruction set is changed."
            )


def _code_and_threads(weight: Tensor) -> tuple[int, int]:
    return extension.DTYPE_CODES[weight.dtype], torch.get_num_threads()


def pack(weight: Tensor) -> PackedWeight:
    """A packed copy of `weight` [n, k] (float32, bfloat16 or float16, on the CPU)."""
    n, k = weight.shape
    buffer = torch.empty(extension.cpu.packed_size(n, k), dtype=weight.dtype)
    source = extension.with_dense_rows(weight.detach())
    extension.cpu.pack_weight(
        source.data_ptr(), buffer.data_ptr(), n, k, source.stride(0), *_code_and_threads(weight)
    )
    return PackedWeight(buffer, n, k, extension.cpu.variant())


class RoundedWeight:
    """Stands for a weight [n, k] in float32, rounded to `dtype`: the C++ kernels round what they read."""

    __slots__ = ("dtype", "weight")
    requires_grad = False

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        self.weight, self.dtype = weight, dtype

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def ndim(self) -> int:
        return self.weight.ndim

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def unpack(self) -> Tensor:
        """The rounded weight."""
        return self.weight.to(self.dtype)


def operands(*weights: Tensor) -> tuple[list[Tensor], list[int], int]:
    """What a kernel reads of the weights [n, k] of one product.

    Returns: tensors; their row strides, `KeptParameter.stride_code` for kept ones; the code of their dtype.
    """
    kind = type(weights[0])
    if issubclass(kind, KeptParameter) and all(type(weight) is kind for weight in weights):
        strides = [kind.stride_code] * len(weights)
        return kind.operands(weights), strides, extension.DTYPE_CODES[weights[0].dtype]
    if all(isinstance(weight, RoundedWeight) for weight in weights):
        weights = [weight.weight for weight in weights]
    plain = [_with_own_rows(unpacked(weight)) for weight in weights]
    strides = [weight.stride(0) or 1 for weight in plain]
    return plain, strides, extension.DTYPE_CODES[plain[0].dtype]


def _with_own_rows(weight: Tensor) -> Tensor:
    """The weight itself if its rows lie one after another in memory (on a GPU: without gaps), else a copy."""
    if extension.on_gpu(weight):
        return weight.contiguous()
    weight = extension.with_dense_rows(weight)
    return weight if weight.stride(0) > 0 else weight.clone(memory_format=torch.contiguous_format)


def unpacked(weight: Tensor) -> Tensor:
    """The weight itself, or what a KeptParameter or RoundedWeight stands for."""
    return weight.unpack() if isinstance(weight, (KeptParameter, RoundedWeight)) else weight


_READABLE = {
    getattr(torch.Tensor, name).__get__
    for name in (
        *("shape", "dtype", "device", "requires_grad", "ndim", "layout", "is_leaf", "grad"),
        *("is_meta", "itemsize"),
    )
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "numel", "nelement", "stride", "element_size", "is_floating_point")
}


class KeptParameter(torch.nn.Parameter):
    """Stands where a weight was of which only a form for the C++ kernels is kept.

    Its shape, dtype and requires_grad can be read, its numbers cannot: that raises UnsupportedError. Lies on the meta
    device, so it takes no memory. A subclass has `operands` (what kernels read of weights that read one x), `operand`
    (of one) and `unpack` (the weight that it stands for).
    """

    how: str  # what became of the weight, and how to read it
    stride_code: int  # what tells kernels of it in the place of a row stride

    @classmethod
    def standing_for(cls, shape: tuple[int, int], dtype: torch.dtype) -> Any:
        """A parameter that looks like a weight of that shape and dtype."""
        return torch.Tensor._make_subclass(
            cls, torch.empty(shape, dtype=dtype, device="meta"), False
        )

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.detach:  # by state_dict, where a hook writes the kept form
            return args[0]
        if func not in _READABLE:
            raise UnsupportedError(f"{getattr(func, '__name__', func)}: this weight is {cls.how}.")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class PrepackedParameter(KeptParameter):
    """Stands where a weight was of which only the packed form is kept (`model.prepack()`).

    `packed` is the kept form, `unpack()` the exact weight.
    """

    how = (
        "prepacked, only the kernels' layout of it is kept. Call model.unpack() to read or change it; state_dict() and "
        "save_pretrained() unpack by themselves"
    )
    stride_code = 0
    packed: PackedWeight
    wanted_grad: bool  # requires_grad of the weight that was prepacked

    def __new__(cls, packed: PackedWeight, wanted_grad: bool = False) -> PrepackedParameter:
        self = cls.standing_for((packed.n, packed.k), packed.dtype)
        self.packed, self.wanted_grad = packed, wanted_grad
        return self

    @classmethod
    def operands(cls, weights: Sequence[PrepackedParameter]) -> list[Tensor]:
        """Their buffers. Raises UnsupportedError for those of another instruction set."""
        for weight in weights:
            weight.packed.check_variant()
        return [weight.operand() for weight in weights]

    def operand(self) -> Tensor:
        """What a kernel reads."""
        return self.packed.buffer

    def unpack(self) -> Tensor:
        """The weight [n, k], bit for bit."""
        return self.packed.unpack()

    def __repr__(self, *, tensor_contents=None) -> str:
        kept = self.packed
        return f"PrepackedParameter([{kept.n}, {kept.k}], {kept.buffer.dtype}, packed for {kept.variant})"

    def __deepcopy__(self, memo) -> PrepackedParameter:
        # a packed form is never written to
        return PrepackedParameter(self.packed, self.wanted_grad)

    def __reduce_ex__(self, protocol):
        weight = torch.nn.Parameter(self.unpack(), self.wanted_grad)
        return prepack, (weight,)  # the layout is this machine's; the weight travels


def prepack(weight: Tensor) -> PrepackedParameter:
    """The packed form of `weight` [n, k] as a parameter without numbers of its own.

    Raises UnsupportedError where the C++ backend cannot run on the weight.
    """
    reason = extension.refuses(weight)
    if reason is not None:
        raise UnsupportedError(f"prepack: {reason}.")
    return PrepackedParameter(pack(weight), weight.requires_grad)
