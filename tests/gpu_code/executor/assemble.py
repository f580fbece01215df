"""Functions to threaded code: rows of the register file for every operand, handlers for every instruction.

The rules of the opcodes stand in rules.py; here is what they use: registers, constants and addresses become rows, a
value that has another width than its register is resized in a step of its own, functions that are called are inlined.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from .build import Handler, runtime
from .faults import Fault, Place
from .parse import WIDTHS, Function, Instruction, Label, Register, Unit, Variable, number

Kind = IntEnum("Kind", "PLAIN BRANCH INDEXED EXIT ALIGNED MEMBERS WARP_SYNC BARRIER", start=0)
Flag = IntFlag("Flag", "WIDE_ADDRESS STRONG ZERO_FILL IGNORE ARRIVE")
RECORD = struct.Struct("<iiiiqii16i")
_AXES = {"x": 0, "y": 1, "z": 2}
_SPECIAL = {
    "%tid": 0,
    "%ntid": 1,
    "%ctaid": 2,
    "%nctaid": 3,
    "%laneid": 4,
    "%warpid": 5,
    "%nwarpid": 6,
}
_SPECIAL |= {f"%lanemask_{name}": 7 + k for k, name in enumerate(("eq", "le", "lt", "ge", "gt"))}
_SPECIAL |= {"%smid": 12, "%nsmid": 13, "%gridid": 14}
_SPECIAL |= {"%dynamic_smem_size": 15, "%total_smem_size": 16}
_CLOCKS = {"%clock": 4, "%clock_hi": 4, "%clock64": 8, "%globaltimer": 8, "%globaltimer_lo": 4}


class Row(NamedTuple):
    """32 values of `width` bytes in the register file, or the 32 bits of a predicate (width 0)."""

    offset: int
    width: int


class Frame:
    """One function where it is inlined: its registers, its memory and the place to return to."""

    def __init__(self, function: Function, end: Label):
        self.function, self.end = function, end
        self.rows: dict[Register, Row] = {}
        self.local: dict[Variable, int] = {}  # offset in the thread's local memory
        self.labels: dict[Label, int] = {}
        self.branches: list[tuple[int, Label]] = []


class Program:
    """What the runtime runs: code, constants, and how much memory of each kind it needs."""

    def __init__(self):
        self.code: list[list] = []
        self.places: list[Place] = []
        self.targets: list[int] = []
        self.constants: dict[tuple[int, int], Row] = {}  # (value, width)
        self.specials: dict[tuple[int, int], Row] = {}  # (kind, axis)
        self.file_bytes, self.local_bytes = 64, 0

    def row(self, width: int) -> Row:
        offset = self.file_bytes
        self.file_bytes += max(64, 32 * width)
        return Row(offset, width)


class Assembler:
    """Assembles one kernel.

    Args:
        addresses: of the module's variables: real addresses of global and const ones, offsets of shared ones.
    """

    def __init__(self, unit: Unit, kernel: Function, addresses: dict[Variable, int]):
        self.unit, self.kernel, self.addresses = unit, kernel, addresses
        self.handlers = runtime().handlers
        self.program = Program()
        self.temporaries: dict[int, list[Row]] = {}
        self.carry: Row | None = None
        self.calling: list[str] = []
        self.inline(kernel, {})
        self.program.local_bytes = (self.program.local_bytes + 15) // 16 * 16

    # -- functions

    def inline(self, function: Function, parameters: dict[Variable, int]):
        """Appends the code of a function. parameters: where its caller keeps them in local memory."""
        from .rules import assemble  # rules.py needs this module

        if function.name in self.calling:
            raise Fault("unknown instruction", self.place, detail=f"{function.name} calls itself")
        self.calling.append(function.name)
        outer, self.frame = getattr(self, "frame", None), Frame(function, Label("end"))
        self.frame.local.update(parameters)
        for variable in function.variables:
            if variable.space in ("local", "param"):
                self.frame.local[variable] = self.allocate_local(variable)
        for item in function.body:
            if isinstance(item, Label):
                self.frame.labels[item] = len(self.program.code)
            else:
                self.instruction, self.place, self.used = item, item.place, {}
                assemble(self, item)
        self.frame.labels[self.frame.end] = len(self.program.code)
        if outer is None:
            self.instruction = None
            self.emit("exit", [], [], kind=Kind.EXIT)
        self._bind()
        self.frame = outer
        self.calling.pop()

    def allocate_local(self, variable: Variable) -> int:
        align = max(variable.align, 1)
        offset = (self.program.local_bytes + align - 1) // align * align
        self.program.local_bytes = offset + variable.size
        return offset

    def _bind(self):
        for index, label in self.frame.branches:
            if label.targets is not None:
                names = [self.kernel_label(name) for name in label.targets]
                self.program.code[index][6] = len(self.program.targets)
                self.program.targets += [self.frame.labels[name] for name in names]
            else:
                self.program.code[index][6] = self.frame.labels[label]

    def kernel_label(self, name: str) -> Label:
        return self.frame.function.scope.find(name)

    # -- rows

    def refuse(self, detail: str = ""):
        raise Fault("unknown instruction", self.place, kernel=self.kernel.name, detail=detail)

    def temporary(self, width: int) -> Row:
        """A row for the steps of one instruction."""
        rows, used = self.temporaries.setdefault(width, []), self.used.get(width, 0)
        if used == len(rows):
            rows.append(self.program.row(width))
        self.used[width] = used + 1
        return rows[used]

    def constant(self, value: int, width: int) -> Row:
        value &= (1 << 8 * (width or 4)) - 1
        key = (value, width)
        if key not in self.program.constants:
            self.program.constants[key] = self.program.row(width)
        return self.program.constants[key]

    def register(self, register: Register) -> Row:
        row = self.frame.rows.get(register)
        if row is None:
            row = self.frame.rows[register] = self.program.row(register.width)
        return row

    def find(self, name: str):
        return self.instruction.scope.find(name)

    def address_of(self, variable: Variable) -> tuple[str, int]:
        """The state space and the address in it of a variable."""
        if variable in self.frame.local:
            return "local", self.frame.local[variable]
        return variable.space, self.addresses[variable]

    def source(
        self, text: str | Row, width: int | None, kind: str = "", signed: bool = False
    ) -> Row:
        """The row of an operand that is read as a value of `width` bytes (None: of its own).

        Args:
            kind: the PTX type of a literal; without it bits.
        """
        row = text if isinstance(text, Row) else self._read(text, width, kind)
        return row if width is None else self.resized(row, width, signed)

    def _read(self, text: str, width: int | None, kind: str) -> Row:
        if text.startswith("!"):
            row = self.temporary(0)
            self.emit("not.pred", [row], [text[1:].strip()])
            return row
        found = self.find(text)
        if isinstance(found, Register):
            return self.register(found)
        if text.startswith("%"):
            return self._special(text)
        if text == "WARP_SZ":
            return self.constant(32, width or 4)
        if isinstance(found, Variable):
            return self.constant(self.address_of(found)[1], width or 8)
        if symbol := re.fullmatch(r"([\w$]+)\s*\+\s*(-?\d+)", text):
            found = self.find(symbol[1])
            if isinstance(found, Variable):
                return self.constant(self.address_of(found)[1] + int(symbol[2]), width or 8)
        if width == 0:
            if text not in ("0", "1", "-1"):
                self.refuse(text)
            return self.constant(-(text != "0"), 0)
        try:
            return self.constant(number(text, kind or f"b{8 * (width or 4)}"), width or 4)
        except (ValueError, KeyError):
            self.refuse(text)

    def _special(self, text: str) -> Row:
        if text in _CLOCKS:
            row = self.temporary(_CLOCKS[text])
            self.emit(f"clock.u{8 * row.width}", [row], [])
            return row
        name, _, axis = text.partition(".")
        if name not in _SPECIAL or (axis and axis not in _AXES):
            self.refuse(text)
        key = (_SPECIAL[name], _AXES.get(axis, 0))
        if key not in self.program.specials:
            self.program.specials[key] = self.program.row(8 if name == "%gridid" else 4)
        return self.program.specials[key]

    def resized(self, row: Row, width: int, signed: bool) -> Row:
        if row.width == width:
            return row
        if 0 in (row.width, width):
            self.refuse("a predicate among numbers")
        out = self.temporary(width)
        sign = "s" if signed and width > row.width else "u"
        self.emit(f"resize.{sign}.{row.width}.{width}", [out], [row])
        return out

    def destination(self, text: str | Row, width: int) -> tuple[Row, Row | None]:
        """The row that a result of `width` bytes goes to, and the register's row where that is another one."""
        if isinstance(text, Row):
            return text, None
        if text == "_":
            return self.temporary(width), None
        found = self.find(text)
        if not isinstance(found, Register):
            self.refuse(text)
        row = self.register(found)
        if row.width == width:
            return row, None
        return self.temporary(width), row

    def address(self, text: str) -> tuple[str | None, Row, int]:
        """`[base + offset]`: the space of base where it is a variable, its row and the offset."""
        found = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if not found:
            self.refuse(text)
        base, offset = found[1], int(found[2] or "0", 0)
        thing = self.find(base)
        if isinstance(thing, Register):
            return None, self.register(thing), offset
        if isinstance(thing, Variable):
            space, where = self.address_of(thing)
            return space, self.constant(where, 8), offset
        return None, self.source(base, 8), offset

    # -- code

    def lookup(self, *names: str) -> str:
        """The first of these handlers that exists."""
        for name in names:
            if name in self.handlers:
                return name
        self.refuse()

    def emit(
        self,
        name: str,
        outputs: list[str | Row],
        sources: list[str | Row],
        *,
        kind: Kind = Kind.PLAIN,
        literal: str = "",
        signed: bool = False,
        imm: int = 0,
        target: int = 0,
        flags: int = 0,
        label: Label | None = None,
    ):
        """Appends one step of the current instruction, under its guard."""
        handler: Handler = self.handlers[name]
        if len(outputs) != len(handler.outputs) or len(sources) != len(handler.sources):
            self.refuse("number of operands")
        rows, moves = [], []
        for text, width in zip(outputs, handler.outputs, strict=True):
            row, register = self.destination(text, width)
            rows.append(row.offset)
            if register is not None:
                moves.append((register, row))
        reads = []
        for text, width in zip(sources, handler.sources, strict=True):
            own = literal if literal and width is not None and WIDTHS[literal] == width else ""
            row = self.source(text, width, own, signed)
            reads.append(row.offset)
            if width is None and row.width == 8:
                flags |= Flag.WIDE_ADDRESS
        self._append(handler, kind, imm, target, flags, rows + reads, label)
        for register, row in moves:
            sign = "s" if signed and register.width > row.width else "u"
            self.emit(f"resize.{sign}.{row.width}.{register.width}", [register], [row])

    def _append(self, handler: Handler, kind, imm, target, flags, slots, label):
        guard = negate = 0
        ins: Instruction | None = self.instruction
        if ins is not None and ins.guard:
            found = self.find(ins.guard)
            if not isinstance(found, Register) or found.width:
                self.refuse(ins.guard)
            guard, negate = self.register(found).offset, int(ins.negate)
        if label is not None:
            self.frame.branches.append((len(self.program.code), label))
        slots = slots + [0] * (16 - len(slots))
        self.program.code.append(
            [handler.index, kind, guard, negate, imm, 0, target, flags, *slots]
        )
        self.program.places.append(self.place)
