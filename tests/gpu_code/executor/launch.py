"""Buffers, and the launch of a kernel on them."""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from .assemble import RECORD, Assembler, Program
from .build import runtime
from .faults import Fault, Place
from .parse import Function, Unit, Variable, parse

_MODES = {"in": 0, "out": 1, "inout": 2}
_ORDERS = {"forward": 0, "reversed": 1, "shuffled": 2}
_NAMELESS = {-2: "shared memory", -3: "local memory", -4: "parameters"}
_DYNAMIC_ALIGN = 16


def _lazy(size: int) -> numpy.ndarray:
    """Zeros that take memory only where they are touched: the system is told to promise none."""
    no_reserve = 0x4000 if sys.platform == "linux" else 0  # mmap names it from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return numpy.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), dtype=numpy.uint8)


class Buffer:
    """A range of memory that a kernel may touch.

    Args:
        address, size: where it is, in bytes.
        mode: "in" is never written, of "out" no byte is read that was not written, "inout" may be both.
        written: one bool a byte, true where it is initialised. A launch marks what it writes there, so that several
            launches can share one array. Without it an "out" buffer begins with nothing written.
        keep: what owns the memory.
    """

    def __init__(
        self,
        address: int,
        size: int,
        name: str,
        mode: str = "inout",
        written: numpy.ndarray | None = None,
        keep: object = None,
    ):
        if mode not in _MODES:
            raise ValueError(f"mode {mode!r} of {name}; one of {', '.join(_MODES)}")
        if written is not None and (written.dtype.itemsize != 1 or written.size < size):
            raise ValueError(f"written of {name} must hold one byte for each of {size}")
        self.address, self.size, self.name, self.mode = address, size, name, mode
        self.written, self.keep = written, keep

    @classmethod
    def of(
        cls, array, name: str, mode: str = "inout", written: numpy.ndarray | None = None
    ) -> Buffer:
        """The bytes from the first to the last element of a numpy array or a torch tensor, strides and all."""
        if isinstance(array, numpy.ndarray):
            address, item, strides = array.ctypes.data, array.itemsize, array.strides
        else:
            address, item = array.data_ptr(), array.element_size()
            strides = [stride * item for stride in array.stride()]
        empty = 0 in array.shape
        reach = [(n - 1) * stride for n, stride in zip(array.shape, strides, strict=True)]
        before = 0 if empty else sum(step for step in reach if step < 0)
        size = 0 if empty else sum(abs(step) for step in reach) + item
        return cls(address + before, size, name, mode, written, keep=array)


class SparseBuffer(Buffer):
    """A wide range of addresses that takes memory only where it is touched; zeros until then.

    `array(dtype)` is a numpy view of all of it, to put values in and to look at what was written.
    """

    def __init__(self, size: int, name: str, mode: str = "inout"):
        self._bytes = _lazy(size)
        super().__init__(self._bytes.ctypes.data, size, name, mode, keep=self._bytes)

    def array(self, dtype) -> numpy.ndarray:
        item = numpy.dtype(dtype).itemsize
        return self._bytes[: self.size // item * item].view(dtype)


@dataclass
class Report:
    """What a launch did. `moved` counts each access; the other bytes are distinct ones by buffer name, counted where
    `check` was on.
    """

    instructions: int = 0  # of warps
    barriers: int = 0  # arrivals of warps
    moved: dict[int, int] = field(default_factory=dict)  # global bytes by width of an access
    bytes_read: dict[str, int] = field(default_factory=dict)
    bytes_written: dict[str, int] = field(default_factory=dict)
    unwritten: dict[str, int] = field(default_factory=dict)  # of "out" buffers


class Kernel:
    """One .entry of a module, assembled."""

    def __init__(self, module: Module, function: Function):
        self.module, self.name, self.reqntid = module, function.name, function.reqntid
        self.parameters: list[tuple[int, int]] = []
        self.floats = [variable.kind[0] == "f" for variable in function.parameters]
        addresses = dict(module.addresses)
        end = 0
        for variable in function.parameters:
            offset = math.ceil(end / variable.align) * variable.align
            addresses[variable] = offset
            self.parameters.append((offset, variable.size))
            end = offset + variable.size
        self.parameter_bytes = end
        self.static_shared = self._place_shared(function, addresses)
        program = Assembler(module.unit, function, addresses).program
        self.places: list[Place] = program.places
        self.file_bytes, self.local_bytes = program.file_bytes, program.local_bytes
        self._pack(program)

    def _place_shared(self, function: Function, addresses: dict[Variable, int]) -> int:
        """Offsets of shared variables: those of fixed size, then all that take what the launch gives."""
        inlined = [
            v for f in self.module.unit.functions.values() if not f.entry for v in f.variables
        ]
        variables = [
            v
            for v in self.module.unit.variables + inlined + function.variables
            if v.space == "shared"
        ]
        end = 0
        for variable in sorted(variables, key=lambda v: not v.size):
            align = variable.align if variable.size else max(_DYNAMIC_ALIGN, variable.align)
            offset = math.ceil(end / align) * align
            addresses[variable] = offset
            end = offset + variable.size if variable.size else end
        return end

    def _pack(self, program: Program):
        code = bytearray()
        for record in program.code:
            handler, kind, guard, negate, imm, _, target, flags, *slots = record
            code += RECORD.pack(handler, kind, guard, negate, imm, target, flags, *slots)
        self.code = bytes(code)
        self.targets = struct.pack(f"<{len(program.targets)}i", *program.targets)
        self.constants = b"".join(
            struct.pack("<iiQ", row.offset, row.width, value)
            for (value, _), row in program.constants.items()
        )
        self.specials = b"".join(
            struct.pack("<iiii", row.offset, kind, axis, row.width)
            for (kind, axis), row in program.specials.items()
        )


class Module:
    """The kernels of one PTX text, and the memory of its variables."""

    def __init__(self, text: str, name: str):
        self.name = name
        self.unit: Unit = parse(text, name)
        self.buffers: list[Buffer] = []
        self.addresses: dict[Variable, int] = {}
        for variable in self.unit.variables:
            if variable.space in ("global", "const"):
                self.addresses[variable] = self._allocate(variable)
        entries = [function for function in self.unit.functions.values() if function.entry]
        self.kernels = {function.name: Kernel(self, function) for function in entries}

    def _allocate(self, variable: Variable) -> int:
        memory = numpy.zeros(variable.size + variable.align, numpy.uint8)
        address = math.ceil(memory.ctypes.data / variable.align) * variable.align
        ctypes.memmove(address, variable.data, len(variable.data))
        mode = "in" if variable.space == "const" else "inout"
        self.buffers.append(Buffer(address, variable.size, variable.name, mode, keep=memory))
        return address

    def __getitem__(self, name: str) -> Kernel:
        return self.kernels[name]


def load(text: str, name: str = "PTX") -> Module:
    """Parses and assembles every kernel of a PTX text. Raises Fault for what the executor does not know."""
    return Module(text, name)


def _fields(**kinds: str) -> list:
    """Fields of a C structure: names by their type."""
    types = {"int64": ctypes.c_int64, "uint64": ctypes.c_uint64, "int32": ctypes.c_int32}
    types |= {"text": ctypes.c_char_p, "xyz": ctypes.c_uint32 * 3}
    return [(name, types[kind]) for kind, names in kinds.items() for name in names.split()]


class _Buffer(ctypes.Structure):
    _fields_ = _fields(
        uint64="base size written touched owner",
        int64="bytes_read bytes_written",
        int32="mode padding",
    )


class _Launch(ctypes.Structure):
    _fields_ = _fields(
        text="code targets constants specials params",
        uint64="buffers blocks seed",
        int64="code_count constant_count special_count buffer_count block_count"
        " param_bytes file_bytes shared_bytes dynamic_bytes local_bytes limit",
        xyz="grid block",
        int32="check order",
    )


class _Result(ctypes.Structure):
    _fields_ = _fields(
        int64="instructions barriers offset moved1 moved2 moved4 moved8 moved16",
        int32="pc buffer warp lane",
        xyz="block",
    )
    _fields_ += [("kind", ctypes.c_char * 64), ("detail", ctypes.c_char * 448)]


class _Shadow:
    """What is noted of each byte of a buffer; pages take memory only where the kernel goes."""

    def __init__(self, buffer: Buffer, check: bool):
        self.buffer = buffer
        self.written = buffer.written
        fresh = check and self.written is None and buffer.mode == "out"
        if fresh:
            self.written = _lazy(buffer.size)
        touched = _lazy(buffer.size) if check else None
        owner = _lazy(4 * buffer.size) if check and buffer.mode != "in" else None
        self.record = _Buffer(buffer.address, buffer.size, mode=_MODES[buffer.mode])
        for name, array in (("written", self.written), ("touched", touched), ("owner", owner)):
            setattr(self.record, name, 0 if array is None else array.ctypes.data)
        self._kept = touched, owner


def _extent(size: int | Sequence[int]) -> tuple[int, int, int]:
    size = (size,) if isinstance(size, int) else tuple(size)
    return (*size, 1, 1)[:3]


def _parameter_block(kernel: Kernel, arguments) -> bytes:
    if isinstance(arguments, (bytes, bytearray)):
        given = bytes(arguments)
        if len(given) < kernel.parameter_bytes:
            raise ValueError(f"{kernel.name} takes {kernel.parameter_bytes} bytes of parameters")
        return given
    if len(arguments) != len(kernel.parameters):
        raise ValueError(
            f"{kernel.name} takes {len(kernel.parameters)} arguments, not {len(arguments)}"
        )
    block = bytearray(kernel.parameter_bytes)
    for (offset, size), real, value in zip(
        kernel.parameters, kernel.floats, arguments, strict=True
    ):
        if real or isinstance(value, float):
            block[offset : offset + size] = struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
        else:
            block[offset : offset + size] = (int(value) & ((1 << 8 * size) - 1)).to_bytes(
                size, "little"
            )
    return bytes(block)


def _blocks(grid: tuple[int, int, int], order: str, seed: int, chosen) -> numpy.ndarray:
    """The ids of the blocks that run, in their order: uint32 [n, 3], x fastest."""
    if chosen is None:
        z, y, x = numpy.indices(grid[::-1], dtype=numpy.uint32).reshape(3, -1)
        ids = numpy.stack([x, y, z], axis=1)
    else:
        ids = numpy.array([_extent(block) for block in chosen], numpy.uint32).reshape(-1, 3)
    if order == "reversed":
        ids = ids[::-1]
    elif order == "shuffled":
        ids = ids[numpy.random.default_rng(seed).permutation(len(ids))]
    return numpy.ascontiguousarray(ids)


def launch(
    kernel: Kernel,
    grid,
    block,
    arguments,
    buffers: Sequence[Buffer],
    *,
    shared: int = 0,
    check: bool = True,
    order: str = "forward",
    seed: int = 0,
    blocks=None,
    limit: int = 10**9,
) -> Report:
    """Runs a kernel. Raises Fault where it breaks a rule.

    Args:
        grid, block: their extents (x, y, z), in blocks and in threads.
        arguments: one int (an address is one) or float a parameter, or the bytes of the parameter block.
        buffers: all global memory that the kernel may touch, besides the module's own variables.
        shared: bytes of dynamic shared memory.
        check: look for races, uninitialised memory and blocks that write the same byte, and count bytes. Bounds,
            alignment and writes to "in" buffers are seen always.
        order: in which blocks run, warps take turns and lanes write: "forward", "reversed" or "shuffled" (by `seed`).
        blocks: the only block ids that run, out of the grid.
        limit: instructions of warps, over all blocks.
    """
    if order not in _ORDERS:
        raise ValueError(f"order {order!r}; one of {', '.join(_ORDERS)}")
    grid, block = _extent(grid), _extent(block)
    if math.prod(block) > 1024 or (kernel.reqntid and _extent(kernel.reqntid) != block):
        raise ValueError(f"{kernel.name} cannot have blocks of {block}; .reqntid {kernel.reqntid}")
    shadows = [_Shadow(buffer, check) for buffer in [*buffers, *kernel.module.buffers]]
    records = (_Buffer * (len(shadows) + 1))(*(shadow.record for shadow in shadows))
    ids = _blocks(grid, order, seed, blocks)
    params = _parameter_block(kernel, arguments)
    static = (
        math.ceil(kernel.static_shared / _DYNAMIC_ALIGN) * _DYNAMIC_ALIGN
        if shared
        else kernel.static_shared
    )
    request = _Launch(
        kernel.code, kernel.targets, kernel.constants, kernel.specials, params,
        ctypes.addressof(records), ids.ctypes.data, seed,
        len(kernel.code) // RECORD.size, len(kernel.constants) // 16, len(kernel.specials) // 16,
        len(shadows), len(ids),
        len(params), kernel.file_bytes, static + shared, shared, kernel.local_bytes, limit,
        grid, block, int(check), _ORDERS[order],
    )  # fmt: skip
    result = _Result()
    if runtime().run(ctypes.byref(request), ctypes.byref(result)):
        raise _fault(kernel, result, [shadow.buffer for shadow in shadows], block)
    return _report(result, records, shadows, check)


def _fault(kernel: Kernel, result: _Result, buffers: list[Buffer], block) -> Fault:
    thread = result.warp * 32 + result.lane
    known = 0 <= result.buffer < len(buffers)
    name = buffers[result.buffer].name if known else _NAMELESS.get(result.buffer)
    return Fault(
        result.kind.decode(),
        kernel.places[result.pc],
        kernel=kernel.name,
        detail=result.detail.decode(),
        buffer=name,
        offset=result.offset if name else None,
        block=tuple(result.block),
        thread=(thread % block[0], thread // block[0] % block[1], thread // block[0] // block[1]),
    )


def _report(result: _Result, records, shadows: list[_Shadow], check: bool) -> Report:
    moved = {width: getattr(result, f"moved{width}") for width in (1, 2, 4, 8, 16)}
    report = Report(result.instructions, result.barriers, moved)
    for record, shadow in zip(itertools.islice(records, len(shadows)), shadows, strict=True):
        buffer = shadow.buffer
        if check:
            report.bytes_read[buffer.name] = (
                report.bytes_read.get(buffer.name, 0) + record.bytes_read
            )
            report.bytes_written[buffer.name] = (
                report.bytes_written.get(buffer.name, 0) + record.bytes_written
            )
        if check and buffer.mode == "out":
            done = (
                record.bytes_written
                if buffer.written is None
                else int(buffer.written[: buffer.size].sum())
            )
            report.unwritten[buffer.name] = buffer.size - done
    return report
