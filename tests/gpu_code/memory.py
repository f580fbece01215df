"""Which bytes of torch's memory on the CPU were written since it was allocated, and the executor's view of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_code import executor

_POISON_INTEGER = 0x5A5A5A5A5A5A5A5A  # far outside every buffer when it is taken for an index

_QUIET = ("detach", "alias", "lift_fresh", "set_", "is_same_size", "item")  # of torch's operations


class Memory(TorchDispatchMode):
    """Which bytes of torch's memory were written since it was allocated; active as a mode of torch's dispatcher."""

    ALLOCATIONS = frozenset(
        {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}
    )

    def __init__(self):
        super().__init__()
        # By the address of the storage's record, which the weak reference keeps from being given to another.
        self.unwritten: dict[int, tuple[StorageWeakRef, numpy.ndarray]] = {}
        self.calls: list[str] = []  # torch's own operations, views and allocations aside

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace not in ("aten", "prims", "prim"):
            with self:  # what an operation made of others does inside is seen too
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        result = func(*args, **kwargs)
        if not func.is_view and func.__name__.split(".")[0] not in self.ALLOCATIONS:
            self.calls.append(func.__name__)
        if func.__name__.split(".")[0] in self.ALLOCATIONS:
            self.note_allocated(result)
        elif self.unwritten and func._schema.is_mutable:
            for argument, value in _bound(func._schema.arguments, args, kwargs):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.note_written(value)
        return result

    def launching(self) -> list[str]:
        """torch's operations so far that launch something on a GPU."""
        return [name for name in self.calls if not name.startswith(_QUIET)]

    def note_allocated(self, tensor: Tensor) -> None:
        if not _is_real(tensor) or not tensor.numel() or _is_vast(tensor):
            return
        self.unwritten = {k: v for k, v in self.unwritten.items() if not v[0].expired()}
        storage = tensor.untyped_storage()
        written = numpy.zeros(storage.nbytes(), dtype=bool)
        self.unwritten[storage._cdata] = StorageWeakRef(storage), written
        _poison(tensor)

    def note_written(self, value) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, Tensor) and _is_real(tensor) and tensor.numel():
                written = self.written(tensor.untyped_storage())
                if written is not None:
                    low, high = _extent(tensor)
                    written[low:high] = True

    def launch(self, kernel, grid: tuple, block: tuple, *arguments, shared: int = 0, **options):
        """Runs a kernel that nvcc or a hand wrote on tensors and numbers, in the order of its parameters."""
        tensors = [(f"argument {i}", x) for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        return executor.launch(
            kernel,
            grid=grid,
            block=block,
            arguments=[x.data_ptr() if isinstance(x, Tensor) else x for x in arguments],
            shared=shared,
            buffers=self.buffers(tensors),
            **options,
        )

    def written(self, storage) -> numpy.ndarray | None:
        """One bool a byte, or None where all counts as written."""
        kept = self.unwritten.get(storage._cdata)
        return None if kept is None else kept[1]

    def buffers(self, tensors: list[tuple[str, Tensor]]) -> list:
        """One executor.Buffer for each span of memory that the arguments cover; views of a storage may share one."""
        spans: dict[int, list] = {}
        for name, tensor in tensors:
            if tensor.numel():
                storage = tensor.untyped_storage()
                spans.setdefault(storage.data_ptr(), []).append((*_extent(tensor), name, storage))
        return [
            self._buffer(*span)
            for found in spans.values()
            for span in _merged(sorted(found, key=lambda s: s[:2]))
        ]

    def _buffer(self, low: int, high: int, names: list[str], storage):
        written = self.written(storage)
        return executor.Buffer(
            storage.data_ptr() + low,
            high - low,
            "+".join(dict.fromkeys(names)),
            "inout" if written is None else "out",
            written=None if written is None else written[low:high],
        )


def _bound(parameters, args, kwargs) -> Iterator[tuple[Any, Any]]:
    positional = [parameter for parameter in parameters if not parameter.kwarg_only]
    yield from zip(positional, args, strict=False)
    yield from (
        (parameter, kwargs[parameter.name]) for parameter in parameters if parameter.name in kwargs
    )


def _is_real(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


def _is_vast(tensor: Tensor) -> bool:
    """Memory that exists only where it is touched: poison would bring all of it into being."""
    return tensor.untyped_storage().nbytes() > 1 << 30


def _extent(tensor: Tensor) -> tuple[int, int]:
    """[first, last) byte of the tensor inside its storage."""
    steps = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    first = tensor.storage_offset()
    return first * tensor.itemsize, (first + steps + 1) * tensor.itemsize


def _merged(spans: list) -> Iterator[tuple[int, int, list[str], Any]]:
    """Spans of one storage, sorted by their start; those that overlap become one."""
    low, high, names = spans[0][0], spans[0][1], [spans[0][2]]
    for start, end, name, storage in spans[1:]:
        if start < high:
            high, names = max(high, end), [*names, name]
        else:
            yield low, high, names, storage
            low, high, names = start, end, [name]
    yield low, high, names, spans[0][3]


def _poison(tensor: Tensor) -> None:
    """Fills fresh memory with what shows when it is used: NaN, or a large number."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(_POISON_INTEGER & torch.iinfo(tensor.dtype).max)
