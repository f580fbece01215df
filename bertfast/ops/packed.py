"""Packed weights of the C++ form: when they are kept, when they are thrown away, and a model that keeps nothing else.

A packed copy is cached only inside `Cache.active()`, which the model enters in eval mode with grad off. A cached copy
is used while the weight is the same tensor at the same address with the same version and dtype, and a sample of 128
elements has not changed: fused optimizers and writes through `.data` leave the version alone. Everywhere else a weight
is packed into scratch memory that the calling thread reuses.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import extension
from ..errors import UnsupportedError

_ACTIVE: contextvars.ContextVar[Cache | None] = contextvars.ContextVar(
    "bertfast_packed_cache", default=None
)
_SCRATCH = threading.local()


@dataclass(frozen=True)
class Packed:
    """A weight [n, k] in the layout of one variant of the C++ kernels (csrc/product/gemm.h)."""

    buffer: Tensor
    n: int
    k: int
    variant: str

    def unpack(self) -> Tensor:
        """The weight [n, k], bit for bit."""
        self.check_variant()
        weight = torch.empty(self.n, self.k, dtype=self.buffer.dtype)
        extension.cpu.unpack_weight(
            self.buffer.data_ptr(), weight.data_ptr(), self.n, self.k, *_code_and_threads(weight)
        )
        return weight

    def check_variant(self) -> None:
        if self.variant != extension.cpu.variant():
            raise UnsupportedError(
                f"this weight was packed for the instruction set {self.variant}, and {extension.cpu.variant()} is in "
                "use now. Unfreeze the model before the instruction set is changed."
            )


def _code_and_threads(weight: Tensor) -> tuple[int, int]:
    return extension.DTYPE_CODES[weight.dtype], torch.get_num_threads()


def _pack_into(weight: Tensor, buffer: Tensor) -> None:
    n, k = weight.shape
    source = extension.with_dense_rows(weight)
    extension.cpu.pack_weight(
        source.data_ptr(), buffer.data_ptr(), n, k, source.stride(0), *_code_and_threads(weight)
    )


def pack(weight: Tensor) -> Packed:
    """A packed copy of `weight` [n, k] (float32, bfloat16 or float16, on the CPU)."""
    n, k = weight.shape
    buffer = torch.empty(extension.cpu.packed_size(n, k), dtype=weight.dtype)
    _pack_into(weight.detach(), buffer)
    return Packed(buffer, n, k, extension.cpu.variant())


class Cache:
    """The packed copies of one model's weights."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Products inside the block keep and reuse packed copies. Holds for the calling thread or task."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def clear(self) -> None:
        """Forget every packed copy."""
        self._entries = {}

    def nbytes(self) -> int:
        """Bytes that the packed copies take."""
        return sum(entry[2].buffer.nbytes for entry in self._entries.values())

    def get(self, weight: Tensor) -> Tensor:
        """The packed buffer of `weight`, packed now if what is kept does not match any more."""
        key = _state(weight)
        entry = self._entries.get(id(weight))
        if entry is not None and entry[1] == key and entry[0]() is weight:
            return entry[2].buffer
        packed = pack(weight)
        entries, name = self._entries, id(weight)
        gone = weakref.ref(weight, lambda _: entries.pop(name, None))
        entries[name] = (gone, key, packed)
        return packed.buffer


def _state(weight: Tensor) -> tuple:
    version = None if weight.is_inference() else weight._version
    n, k = weight.shape
    size = weight.element_size()
    address = weight.data_ptr()
    sample = extension.cpu.sample_hash(address, n, k, weight.stride(0) * size, size)
    return address, version, weight.dtype, weight.stride(), extension.cpu.variant(), sample


def buffer_of(weight: Tensor, slot: int = 0) -> Tensor:
    """The packed form of `weight` [n, k] for one product: kept, cached, or in scratch number `slot` of this thread.

    On a GPU, where the kernels read weights as they stand, the contiguous weight itself.
    """
    if extension.on_gpu(weight):
        return weight.contiguous()
    if isinstance(weight, FrozenParameter):
        weight.packed.check_variant()
        return weight.packed.buffer
    cache = _ACTIVE.get()
    if cache is not None:
        return cache.get(weight)
    buffer = _scratch(weight, slot)
    _pack_into(weight, buffer)
    return buffer


def _scratch(weight: Tensor, slot: int) -> Tensor:
    """At least as many elements of the weight's dtype as its packed form takes; grows, never shrinks."""
    buffers = _SCRATCH.__dict__.setdefault("buffers", {})
    size = extension.cpu.packed_size(*weight.shape)
    buffer = buffers.get((slot, weight.dtype))
    if buffer is None or buffer.numel() < size:
        buffer = buffers[slot, weight.dtype] = torch.empty(size, dtype=weight.dtype)
    return buffer


_READABLE = {
    getattr(torch.Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "requires_grad",
        "ndim",
        "layout",
        "is_leaf",
        "grad",
        "is_meta",
        "itemsize",
    )
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "numel", "nelement", "stride", "element_size", "is_floating_point")
}


class FrozenParameter(torch.nn.Parameter):
    """Stands where a weight was of which only the packed form is kept (`model.freeze()`).

    Its shape, dtype and requires_grad can be read, its numbers cannot: that raises UnsupportedError. `packed` is the
    kept form, `unpack()` the exact weight. Lies on the meta device, so it takes no memory.
    """

    packed: Packed
    wanted_grad: bool  # requires_grad of the weight that was frozen

    def __new__(cls, packed: Packed, wanted_grad: bool = False) -> FrozenParameter:
        shape = torch.empty(packed.n, packed.k, dtype=packed.buffer.dtype, device="meta")
        self = torch.Tensor._make_subclass(cls, shape, False)
        self.packed, self.wanted_grad = packed, wanted_grad
        return self

    def unpack(self) -> Tensor:
        """The weight [n, k], bit for bit."""
        return self.packed.unpack()

    def __repr__(self, *, tensor_contents=None) -> str:
        kept = self.packed
        return (
            f"FrozenParameter([{kept.n}, {kept.k}], {kept.buffer.dtype}, packed for {kept.variant})"
        )

    def __deepcopy__(self, memo) -> FrozenParameter:
        return FrozenParameter(self.packed, self.wanted_grad)  # a packed form is never written to

    def __reduce_ex__(self, protocol):
        weight = torch.nn.Parameter(self.unpack(), self.wanted_grad)
        return freeze, (weight,)  # the layout is this machine's; the weight travels

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.detach:  # state_dict takes it along, and a hook unpacks it there
            return args[0]
        if func not in _READABLE:
            raise UnsupportedError(
                f"{getattr(func, '__name__', func)}: this weight is frozen, only its packed form is kept. "
                "Call model.unfreeze() to read or change it; state_dict() and save_pretrained() unpack by themselves."
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def freeze(weight: Tensor) -> FrozenParameter:
    """The packed form of `weight` [n, k] as a parameter without numbers of its own.

    Raises UnsupportedError where the C++ form cannot run on the weight.
    """
    reason = extension.refuses(weight)
    if reason is not None:
        raise UnsupportedError(f"freeze: {reason}.")
    return FrozenParameter(pack(weight), weight.requires_grad)
