"""PTX text to functions: their parameters, variables and statements, each with its line and its source line."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .faults import Fault, Place

WIDTHS = {"pred": 0, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
WIDTHS |= {kind + "32": 4 for kind in "busf"} | {kind + "64": 8 for kind in "busf"}
WIDTHS |= {"f16x2": 4, "bf16x2": 4, "tf32": 4, "b128": 16}


class Register:
    """A virtual register; width in bytes, 0 for a predicate."""

    __slots__ = ("name", "width")

    def __init__(self, name: str, width: int):
        self.name, self.width = name, width


@dataclass(eq=False)
class Variable:
    """Memory with a name: in a state space, of `size` bytes (0: as much as the launch gives), holding type `kind`."""

    name: str
    space: str
    kind: str
    size: int
    align: int
    data: bytes = b""


@dataclass(eq=False)
class Label:
    """A place to branch to, or the list of labels of a .branchtargets."""

    name: str
    targets: list[str] | None = None


class Scope:
    """The names between one pair of braces: registers, variables and labels."""

    def __init__(self, parent: Scope | None = None):
        self.parent, self.names = parent, {}
        self.families: dict[str, tuple[int, int]] = {}  # %r -> (width, how many)

    def find(self, name: str):
        """The thing that a name stands for, or None."""
        found = self.names.get(name)
        if found is not None:
            return found
        stem = name.rstrip("0123456789")
        if stem in self.families and stem != name:
            width, count = self.families[stem]
            if int(name[len(stem) :]) < count:
                return self.names.setdefault(name, Register(name, width))
        return self.parent.find(name) if self.parent else None


class Instruction(NamedTuple):
    """One instruction: guard is the name of a predicate, operands are texts, names are looked up in the scope."""

    guard: str | None
    negate: bool
    opcode: str
    modifiers: tuple[str, ...]
    operands: list[str]
    scope: Scope
    place: Place


@dataclass(eq=False)
class Function:
    name: str
    entry: bool
    parameters: list[Variable] = field(default_factory=list)
    returns: list[Variable] = field(default_factory=list)
    reqntid: tuple[int, ...] | None = None
    body: list[Instruction | Label] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)  # .shared and .local ones
    scope: Scope = field(default_factory=Scope)


@dataclass(eq=False)
class Unit:
    """All of one PTX text."""

    functions: dict[str, Function] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    scope: Scope = field(default_factory=Scope)


_SKIP = re.compile(r"\s+")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_LINE_DIRECTIVE = re.compile(r"\.(version|target|address_size|loc|file|pragma)\b([^\n;]*)")
_SECTION = re.compile(r"\.section\s+[^{]*\{[^}]*\}")
_HEADER = re.compile(
    r"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\s*(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?\s*([^{;]*)([{;])"
)
_STATEMENT = re.compile(r"[^;]*;")
_INSTRUCTION = re.compile(r"(?:@(!?)\s*([\w$%]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(\w+)((?:\s*\.\w+(?:\s+\d+)?)*)\s+([\w$%]+)\s*(\[[\d\s]*\])?((?:\[\d+\])*)"
    r"\s*(?:=\s*(.*))?$",
    re.S,
)
_POINTER = re.compile(r"\.ptr(\s*\.(global|shared|const|local))?(\s*\.align\s+\d+)?")


def parse(text: str, name: str) -> Unit:
    """Reads a whole PTX text; `name` is for messages."""
    return _Parser(text, name).unit


class _Parser:
    def __init__(self, text: str, name: str):
        self.text = _COMMENT.sub(lambda comment: " " + "\n" * comment[0].count("\n"), text)
        self.name, self.unit = name, Unit()
        self.position, self.line, self.counted = 0, 1, 0
        self.files = dict(re.findall(r'^[ \t]*\.file\s+(\d+)\s+"([^"]*)"', text, re.M))
        self.source: str | None = None
        while self._skip():
            self._module_item()

    def _skip(self) -> bool:
        while found := _SKIP.match(self.text, self.position):
            self.position = found.end()
        return self.position < len(self.text)

    def _take(self, pattern: re.Pattern) -> re.Match | None:
        found = pattern.match(self.text, self.position)
        if found:
            self.position = found.end()
        return found

    def _place(self, start: int, text: str) -> Place:
        self.line += self.text.count("\n", self.counted, start)
        self.counted = start
        return Place(self.line, " ".join(text.split()), self.source)

    def _refuse(self, text: str, start: int):
        raise Fault("unknown instruction", self._place(start, text[:200]), kernel=self.name)

    def _module_item(self):
        start = self.position
        if self._take(_LINE_DIRECTIVE) or self._take(_SECTION):
            return
        if found := self._take(_HEADER):
            self._function(found)
        elif found := self._take(_STATEMENT):
            variable = self._variable(found[0][:-1], start)
            self.unit.variables.append(variable)
            self.unit.scope.names[variable.name] = variable
        else:
            self._refuse(self.text[start : start + 80], start)

    def _function(self, header: re.Match):
        kind, returns, name, parameters, directives, end = header.groups()
        function = Function(name, kind == "entry", scope=Scope(self.unit.scope))
        for texts, variables in ((returns, function.returns), (parameters, function.parameters)):
            for text in filter(None, map(str.strip, (texts or "").split(","))):
                variables.append(self._parameter(_SKIP.sub(" ", text), header.start()))
                function.scope.names[variables[-1].name] = variables[-1]
        if found := re.search(r"\.reqntid\s+([\d,\s]+)", directives):
            function.reqntid = tuple(int(n) for n in found[1].split(","))
        if end == "{":
            self.source = None
            self._body(function)
            self.unit.functions[name] = function

    def _parameter(self, text: str, start: int) -> Variable:
        if text.startswith(".reg"):
            self._refuse(text, start)
        return self._variable(re.sub(_POINTER, "", text), start)

    def _variable(self, text: str, start: int) -> Variable:
        found = _VARIABLE.match(text.strip())
        if not found:
            self._refuse(text, start)
        space, attributes, name, first, more, data = found.groups()
        if space == "local" or space in ("global", "const", "shared", "param"):
            words = attributes.split()
            kinds = [word[1:] for word in words if word[1:] in WIDTHS]
        else:
            self._refuse(text, start)
        if not kinds:
            self._refuse(text, start)
        width = WIDTHS[kinds[-1]]
        align = max([int(n) for n in re.findall(r"\.align\s+(\d+)", attributes)] + [width])
        size = width * (4 if ".v4" in words else 2 if ".v2" in words else 1)
        for dimension in re.findall(r"\[(\d*)\]", (first or "") + more):
            size *= int(dimension or 0)
        return Variable(name, space, kinds[-1], size, align, self._data(data, kinds[-1], start))

    def _data(self, text: str | None, kind: str, start: int) -> bytes:
        if not text:
            return b""
        out = b""
        for item in text.replace("{", " ").replace("}", " ").split(","):
            try:
                value = number(item.strip(), kind)
            except ValueError:
                self._refuse(text, start)
            out += value.to_bytes(WIDTHS[kind], "little")
        return out

    def _body(self, function: Function):
        scope = function.scope
        depth = 1
        while depth:
            if not self._skip():
                self._refuse("end of the text inside a function", len(self.text))
            start, first = self.position, self.text[self.position]
            if first == "{":
                self.position, depth, scope = start + 1, depth + 1, Scope(scope)
            elif first == "}":
                self.position, depth, scope = start + 1, depth - 1, scope.parent
            elif first == "." and (found := self._take(_LINE_DIRECTIVE)):
                self._directive(found)
            elif first == ";":
                self.position = start + 1
            elif found := self._take(_LABEL):
                scope.names[found[1]] = label = Label(found[1])
                function.body.append(label)
            elif found := self._take(_STATEMENT):
                self._statement(function, scope, found[0][:-1], start)
            else:
                self._refuse(self.text[start : start + 80], start)

    def _directive(self, found: re.Match):
        if found[1] == "loc":
            file, line = found[2].split()[:2]
            self.source = f"{self.files.get(file, '?')}:{line}"

    def _statement(self, function: Function, scope: Scope, text: str, start: int):
        text = text.strip()
        if text.startswith(".reg"):
            self._registers(scope, text, start)
        elif text.startswith(".branchtargets"):
            function.body[-1].targets = [name.strip() for name in text[14:].split(",")]
        elif text.startswith("."):
            variable = self._variable(text, start)
            scope.names[variable.name] = variable
            function.variables.append(variable)
        elif found := _INSTRUCTION.fullmatch(text):
            negate, guard, name, operands = found.groups()
            opcode, *modifiers = re.split(r"\.", name)
            function.body.append(
                Instruction(
                    guard,
                    negate == "!",
                    opcode,
                    tuple(modifiers),
                    list(split_operands(operands)),
                    scope,
                    self._place(start, text),
                )
            )
        else:
            self._refuse(text, start)

    def _registers(self, scope: Scope, text: str, start: int):
        found = re.fullmatch(r"\.reg\s*\.(\w+)\s+(.*)", text, re.S)
        if not found or WIDTHS.get(found[1], 16) == 16:
            self._refuse(text, start)
        width = WIDTHS[found[1]]
        width = 2 if width == 1 else width
        for name in found[2].split(","):
            if family := re.fullmatch(r"\s*([\w$%]+)<(\d+)>\s*", name):
                scope.families[family[1]] = (width, int(family[2]))
            else:
                scope.names[name.strip()] = Register(name.strip(), width)


def split_operands(text: str) -> Iterator[str]:
    """The operands between commas; {...}, [...] and (...) stay whole."""
    depth, start = 0, 0
    for k, letter in enumerate(text):
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and not depth:
            yield text[start:k].strip()
            start = k + 1
    if text[start:].strip():
        yield text[start:].strip()


def number(text: str, kind: str) -> int:
    """The bits of a literal as a value of PTX type `kind`. Raises ValueError where it is none."""
    width = WIDTHS[kind]
    if text[:2] in ("0f", "0F"):
        value = struct.unpack(">f", bytes.fromhex(text[2:]))[0]
        return int(text[2:], 16) if width != 8 else _bits(value, 8)
    if text[:2] in ("0d", "0D"):
        value = struct.unpack(">d", bytes.fromhex(text[2:]))[0]
        return int(text[2:], 16) if width == 8 else _bits(value, width)
    if kind in ("f32", "f64") and re.fullmatch(r"[-+]?\d+\.?\d*([eE][-+]?\d+)?", text):
        return _bits(float(text), width)
    digits = text.rstrip("U")
    sign = digits.startswith("-")
    digits = digits.lstrip("+-")
    octal = re.fullmatch(r"0[0-7]+", digits)
    value = int(digits, 8) if octal else int(digits, 0)
    return (-value if sign else value) & ((1 << 8 * (width or 4)) - 1)


def _bits(value: float, width: int) -> int:
    return int.from_bytes(struct.pack("<f" if width == 4 else "<d", value), "little")
