"""What each PTX opcode becomes. An opcode or a modifier that no rule and no handler knows is refused."""

from __future__ import annotations

import re

from .assemble import Assembler, Flag, Kind, Row
from .parse import WIDTHS, Function, Instruction, Label, Register, split_operands

_RULES = {}
_SCOPES = {"cta", "cluster", "gpu", "sys"}
_ORDERS = {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel"}
_CACHES = {"ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc"}
_CACHES |= {f"L{n}::evict_{name}" for n in (1, 2) for name in ("first", "last", "normal")}
_CACHES |= {"L1::evict_unchanged", "L1::no_allocate", "L2::cache_hint"}
_CACHES |= {"L2::64B", "L2::128B", "L2::256B"}
_SPACES = {"global": ".global", "const": ".global", "shared": ".shared", "shared::cta": ".shared"}
_SPACES |= {"local": ".local", "param": ".param"}
_VECTORS = {"v2": 2, "v4": 4}
_ROUNDINGS = {"rn", "rz", "rm", "rp"}
_INTEGRAL = {"rni", "rzi", "rmi", "rpi"}
_COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
_COMPARISONS += ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_SWAPPED = {"gt": "lt", "ge": "le", "gtu": "ltu", "geu": "leu"}
_DEFAULT = {"rn", "approx", "full"}  # what the handlers of these opcodes do anyway
_FLOATS = {"add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "rsqrt"}
_FLOATS |= {"ex2", "lg2", "sin", "cos", "tanh"}


def assemble(asm: Assembler, ins: Instruction):
    """Emits the steps of one instruction."""
    _RULES.get(ins.opcode, arithmetic)(asm, ins)


def rule(*opcodes: str):
    def keep(function):
        _RULES.update(dict.fromkeys(opcodes, function))
        return function

    return keep


def spelled(kind: str) -> list[str]:
    """A type as handlers may call it: by itself, as bits, as unsigned bits."""
    width = 8 * WIDTHS[kind]
    return [kind, f"b{width}", f"u{width}"] if width else [kind]


def typed(asm: Assembler, ins: Instruction) -> str:
    if not ins.modifiers or ins.modifiers[-1] not in WIDTHS:
        asm.refuse()
    return ins.modifiers[-1]


def arithmetic(asm: Assembler, ins: Instruction):
    """An opcode whose handler has its name and takes the operands as they come."""
    kind = next((word for word in reversed(ins.modifiers) if word in WIDTHS), None)
    if kind is None:
        asm.refuse()
    opcode, words = ins.opcode, list(ins.modifiers)
    if opcode in _FLOATS:
        words = [word for word in words if word not in _DEFAULT and word != "noftz"]
        opcode = "fma" if opcode == "mad" and kind in ("f32", "f64") else opcode
        if kind == "f64" and "ftz" in words:
            words.remove("ftz")
    saturate = "sat" in words and kind == "f32"
    if saturate:
        words.remove("sat")
    operands = list(ins.operands)
    flush = "ftz" in words and bool(_ROUNDINGS & set(words))
    if flush:
        words.remove("ftz")
        operands[1:] = [flushed(asm, text) for text in operands[1:]]
    at = words.index(kind)
    name = asm.lookup(
        *(".".join([opcode, *words[:at], other, *words[at + 1 :]]) for other in spelled(kind))
    )
    outputs = len(asm.handlers[name].outputs)
    asm.emit(name, operands[:outputs], operands[outputs:], literal=kind, signed=kind[0] == "s")
    if flush:
        asm.emit("flush.f32", [operands[0]], [operands[0]])
    if saturate:
        asm.emit("sat.f32", [operands[0]], [operands[0]])


def flushed(asm: Assembler, text: str | Row) -> Row:
    row = asm.temporary(4)
    asm.emit("flush.f32", [row], [text], literal="f32")
    return row


@rule("addc", "subc", "madc")
def carried(asm: Assembler, ins: Instruction):
    kind, words = typed(asm, ins), list(ins.modifiers[:-1])
    if asm.carry is None:
        asm.carry = asm.program.row(0)
    name = asm.lookup(*(".".join([ins.opcode, *words, other]) for other in spelled(kind)))
    sources = ins.operands[1:] + ["0"] * (4 - len(ins.operands))
    asm.emit(name, ins.operands[:1], [*sources, asm.carry])


@rule("add", "sub", "mad")
def maybe_carried(asm: Assembler, ins: Instruction):
    (carried if "cc" in ins.modifiers else arithmetic)(asm, ins)


@rule("slct")
def slct(asm: Assembler, ins: Instruction):
    words = [word for word in ins.modifiers if word != "ftz"]
    name = asm.lookup(*(f"slct.{other}.{words[-1]}" for other in spelled(words[0])))
    asm.emit(name, ins.operands[:1], ins.operands[1:], literal=words[0])


# -- comparisons


def compare(asm: Assembler, out: str | Row, words: list[str], a: str | Row, b: str | Row):
    """out = a (words[0]) b, of type words[-1], flushed where words say ftz."""
    comparison, kind = _UNSIGNED.get(words[0], words[0]), words[-1]
    if comparison not in _COMPARISONS or set(words[1:-1]) - {"ftz"}:
        asm.refuse()
    if kind in ("f16", "bf16"):
        a, b = (half_to_float(asm, text, kind) for text in (a, b))
        kind = "f32"
    elif "ftz" in words:
        a, b = flushed(asm, a), flushed(asm, b)
    if comparison in _SWAPPED:
        comparison, a, b = _SWAPPED[comparison], b, a
    name = asm.lookup(*(f"setp.{comparison}.{other}" for other in spelled(kind)))
    asm.emit(name, [out], [a, b], literal=kind, signed=kind[0] == "s")


def half_to_float(asm: Assembler, text: str | Row, kind: str) -> Row:
    row = asm.temporary(4)
    asm.emit(f"cvt.f32.{kind}", [row], [text])
    return row


@rule("setp")
def setp(asm: Assembler, ins: Instruction):
    words = list(ins.modifiers)
    typed(asm, ins)
    if words[-1] in ("f16x2", "bf16x2"):
        if len(words) != 2 or words[0] not in _COMPARISONS or "|" not in ins.operands[0]:
            asm.refuse()
        outputs = [name.strip() for name in ins.operands[0].split("|")]
        asm.emit(f"setp.{words[1]}", outputs, ins.operands[1:], imm=_COMPARISONS.index(words[0]))
        return
    combine = next((word for word in words if word in ("and", "or", "xor")), None)
    first, _, second = (name.strip() for name in ins.operands[0].partition("|"))
    if combine is None:
        result = asm.temporary(0) if second else first
        compare(asm, result, words, *ins.operands[1:])
        if second:
            asm.emit("not.pred", [second], [result])
            asm.emit("mov.pred", [first], [result])
        return
    words.remove(combine)
    result, opposite, c = asm.temporary(0), asm.temporary(0), asm.source(ins.operands[3], 0)
    compare(asm, result, words, *ins.operands[1:3])
    asm.emit("not.pred", [opposite], [result])
    combined = asm.temporary(0)
    asm.emit(f"{combine}.pred", [combined], [result, c])
    if second:
        asm.emit(f"{combine}.pred", [second], [opposite, c])
    asm.emit("mov.pred", [first], [combined])


@rule("set")
def set_value(asm: Assembler, ins: Instruction):
    *words, kind, of = ins.modifiers
    if of in ("f16x2", "bf16x2"):
        if len(words) != 1 or words[0] not in _COMPARISONS or kind != of:
            asm.refuse()
        one = 0x3C00 if of == "f16x2" else 0x3F80
        asm.emit(
            f"set.{of}",
            ins.operands[:1],
            ins.operands[1:],
            imm=_COMPARISONS.index(words[0]),
            target=one,
        )
        return
    if kind not in ("u32", "s32", "f32") or len(ins.operands) != 3:
        asm.refuse()
    result = asm.temporary(0)
    compare(asm, result, [*words, of], *ins.operands[1:])
    yes = "0f3F800000" if kind == "f32" else "0xffffffff"
    asm.emit("selp.b32", ins.operands[:1], [yes, "0", result])


# -- moves and conversions


@rule("mov")
def mov(asm: Assembler, ins: Instruction):
    kind = typed(asm, ins)
    out, source = ins.operands
    if out.startswith("{"):
        parts = list(split_operands(out[1:-1]))
        asm.emit(asm.lookup(f"mov.unpack.b{8 * WIDTHS[kind]}.{len(parts)}"), parts, [source])
    elif source.startswith("{"):
        parts = list(split_operands(source[1:-1]))
        asm.emit(asm.lookup(f"mov.pack.b{8 * WIDTHS[kind]}.{len(parts)}"), [out], parts)
    else:
        arithmetic(asm, ins)


@rule("cvt")
def cvt(asm: Assembler, ins: Instruction):
    *words, to, of = ins.modifiers
    if to not in WIDTHS or of not in WIDTHS:
        asm.refuse()
    known = _ROUNDINGS | _INTEGRAL | {"rna", "ftz", "sat", "relu"}
    if set(words) - known:
        asm.refuse()
    rounding = next((word for word in words if word in _ROUNDINGS | _INTEGRAL | {"rna"}), "")
    if to in ("f16x2", "bf16x2", "tf32"):
        sources = ins.operands[1:]
        if "relu" in words:
            sources = [step(asm, "relu.f32", text, 4) for text in sources]
        if "sat" in words:
            asm.refuse()
        asm.emit(asm.lookup(f"cvt.{rounding}.{to}.{of}"), ins.operands[:1], sources, literal="f32")
        return
    floats = to[0] in "fb", of[0] in "fb"
    convert = {(False, False): between_integers, (True, True): between_floats}
    convert |= {(True, False): to_float, (False, True): to_integer}
    row = convert[floats](asm, ins.operands[1], to, of, rounding, set(words))
    assign(asm, ins.operands[0], row, to)


def step(asm: Assembler, name: str, source: str | Row, width: int, literal: str = "") -> Row:
    """A handler of one source into a temporary of `width` bytes."""
    row = asm.temporary(width)
    asm.emit(asm.lookup(name), [row], [source], literal=literal)
    return row


def assign(asm: Assembler, out: str, row: Row, kind: str):
    """Moves a value of type `kind` into a register, which may be wider."""
    register = asm.find(out)
    if not isinstance(register, Register):
        asm.refuse(out)
    to = asm.register(register)
    if to.width == row.width:
        asm.emit("mov.pred" if not to.width else f"mov.b{8 * to.width}", [to], [row])
    else:
        sign = "s" if kind[0] == "s" and to.width > row.width else "u"
        asm.emit(f"resize.{sign}.{row.width}.{to.width}", [to], [row])


def read_integer(asm: Assembler, text: str | Row, kind: str) -> Row:
    """An integer at its own width; one of 8 bits as 16."""
    row = asm.source(text, max(2, WIDTHS[kind]), signed=kind[0] == "s")
    return step(asm, f"narrow.{kind}", row, 2) if WIDTHS[kind] == 1 else row


def between_integers(asm: Assembler, text, to: str, of: str, rounding: str, words: set) -> Row:
    row = read_integer(asm, text, of)
    if "sat" in words:
        row = asm.resized(row, 8, of[0] == "s")
        if of == "u64" and to != "u64":
            least = asm.temporary(8)
            asm.emit("min.u64", [least], [row, asm.constant((1 << 63) - 1, 8)])
            row = least
        if to not in ("s64", "u64"):
            row = step(asm, f"clamp.{to}", row, 8)
        elif to == "u64" and of[0] == "s":
            most = asm.temporary(8)
            asm.emit("max.s64", [most], [row, asm.constant(0, 8)])
            row = most
    row = asm.resized(row, max(2, WIDTHS[to]), of[0] == "s")
    return step(asm, f"narrow.{to}", row, 2) if WIDTHS[to] == 1 else row


def to_float(asm: Assembler, text, to: str, of: str, rounding: str, words: set) -> Row:
    row = read_integer(asm, text, of)
    wide = "s64" if of == "s64" else "u64" if of == "u64" else of[0] + "32"
    row = asm.resized(row, WIDTHS[wide], of[0] == "s")
    if to in ("f16", "bf16"):
        row = step(asm, f"cvt.rn.f64.{wide}", row, 8)
        return step(asm, f"cvt.{rounding}.{to}.f64", row, 2)
    row = step(asm, f"cvt.{rounding}.{to}.{wide}", row, WIDTHS[to])
    return step(asm, "sat.f32", row, 4) if "sat" in words else row


def read_float(asm: Assembler, text, kind: str, words: set) -> tuple[Row, str]:
    """A float as f32 or f64."""
    if kind in ("f16", "bf16"):
        return half_to_float(asm, text, kind), "f32"
    row = asm.source(text, WIDTHS[kind], kind)
    return (flushed(asm, row) if "ftz" in words and kind == "f32" else row), kind


def to_integer(asm: Assembler, text, to: str, of: str, rounding: str, words: set) -> Row:
    row, kind = read_float(asm, text, of, words)
    row = step(asm, f"round.{rounding}.{kind}", row, WIDTHS[kind])
    if WIDTHS[to] >= 4:
        return step(asm, f"cvt.{to}.{kind}", row, WIDTHS[to])
    row = step(asm, f"clamp.{to}", step(asm, f"cvt.s64.{kind}", row, 8), 8)
    return asm.resized(row, 2, False)


def between_floats(asm: Assembler, text, to: str, of: str, rounding: str, words: set) -> Row:
    row, kind = read_float(asm, text, of, words)
    if rounding in _INTEGRAL:
        row = step(asm, f"round.{rounding}.{kind}", row, WIDTHS[kind])
        rounding = "rn"
    if to in ("f16", "bf16"):
        for word in ("sat", "relu"):
            row = step(asm, f"{word}.{kind}", row, 4) if word in words else row
        return step(asm, f"cvt.{rounding or 'rn'}.{to}.{kind}", row, 2)
    if to != kind:
        row = step(
            asm, *(("cvt.f64.f32", row, 8) if to == "f64" else (f"cvt.{rounding}.f32.f64", row, 4))
        )
    if "ftz" in words and to == "f32":
        row = flushed(asm, row)
    return step(asm, f"sat.{to}", row, 4) if "sat" in words else row


@rule("cvta")
def cvta(asm: Assembler, ins: Instruction):
    back = ins.modifiers[0] == "to"
    space, *kind = ins.modifiers[back:]
    if kind != ["u64"]:
        asm.refuse()
    space = space.removesuffix("::cta")
    name = "mov.b64" if space in ("global", "const") else f"cvta.{'to.' * back}{space}.u64"
    asm.emit(asm.lookup(name), ins.operands[:1], ins.operands[1:])


@rule("isspacep")
def isspacep(asm: Assembler, ins: Instruction):
    asm.emit(
        asm.lookup(f"isspacep.{ins.modifiers[0].removesuffix('::cta')}"),
        ins.operands[:1],
        ins.operands[1:],
    )


# -- memory


def memory_words(
    asm: Assembler, ins: Instruction, extra: set[str] = frozenset()
) -> tuple[str, set[str], int]:
    """Space (as handlers are named), the words that are left of `extra`, and flags."""
    space, rest, flags = "", set(), 0
    for word in ins.modifiers[:-1]:
        word = {"param::entry": "param", "param::func": "param"}.get(word, word)
        if word in _SPACES:
            space = _SPACES[word]
        elif word in extra:
            rest.add(word)
        elif word not in _SCOPES | _ORDERS | _CACHES:
            asm.refuse()
        if word in ("volatile", "relaxed", "acquire", "release"):
            flags = Flag.STRONG
    return space, rest, flags


def place(asm: Assembler, text: str, space: str) -> tuple[str, Row, int]:
    """Space, row and offset of an address; the parameters of an inlined function are local memory."""
    named, row, offset = asm.address(text)
    if space == ".param" and (named == "local" or asm.frame.function is not asm.kernel):
        space = ".local"
    return space, row, offset


@rule("ld", "ldu")
def ld(asm: Assembler, ins: Instruction):
    kind = typed(asm, ins)
    space, words, flags = memory_words(asm, ins, set(_VECTORS))
    space, row, offset = place(asm, ins.operands[1], space)
    outputs = (
        list(split_operands(ins.operands[0].strip("{} ")))
        if ins.operands[0].startswith("{")
        else ins.operands[:1]
    )
    suffix = "".join("." + word for word in words)
    name = asm.lookup(f"ld{space}.b{8 * WIDTHS[kind]}{suffix}")
    if WIDTHS[kind] > 1 or kind[0] != "s":
        asm.emit(name, outputs, [row], imm=offset, flags=flags, signed=kind[0] == "s")
        return
    rows = [asm.temporary(2) for _ in outputs]
    asm.emit(name, rows, [row], imm=offset, flags=flags)
    for out, part in zip(outputs, rows, strict=True):
        assign(asm, out, step(asm, "narrow.s8", part, 2), kind)


@rule("st")
def st(asm: Assembler, ins: Instruction):
    kind = typed(asm, ins)
    space, words, flags = memory_words(asm, ins, set(_VECTORS))
    space, row, offset = place(asm, ins.operands[0], space)
    text = ins.operands[1]
    values = list(split_operands(text.strip("{} "))) if text.startswith("{") else [text]
    suffix = "".join("." + word for word in words)
    name = asm.lookup(f"st{space}.b{8 * WIDTHS[kind]}{suffix}")
    asm.emit(name, [], [row, *values], imm=offset, flags=flags, literal=kind)


_ATOMIC = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]


@rule("atom", "red")
def atom(asm: Assembler, ins: Instruction):
    kind = typed(asm, ins)
    space, words, flags = memory_words(asm, ins, {*_ATOMIC, "noftz"})
    operation = words - {"noftz"}
    if len(operation) != 1:
        asm.refuse()
    (operation,) = operation
    operands = list(ins.operands) if ins.opcode == "atom" else ["_", *ins.operands]
    if "L2::cache_hint" in ins.modifiers:
        operands.pop()
    space, row, offset = place(asm, operands[1], space)
    known = ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")
    if (kind in known and operation != "add") or (operation == "cas") != (len(operands) == 4):
        asm.refuse()
    name = asm.lookup(f"atom{space}.{kind}", f"atom{space}.u{8 * WIDTHS[kind]}")
    third = operands[3] if len(operands) == 4 else asm.constant(0, WIDTHS[kind])
    code = _ATOMIC.index(operation)
    asm.emit(
        name,
        operands[:1],
        [row, operands[2], third],
        imm=offset,
        target=code,
        flags=flags,
        literal=kind,
    )


@rule("cp")
def cp_async(asm: Assembler, ins: Instruction):
    words = [word for word in ins.modifiers if word not in _CACHES]
    if words == ["async", "commit_group"]:
        asm.emit("cp.async.commit_group", [], [])
    elif words == ["async", "wait_all"]:
        asm.emit("cp.async.wait_group", [], [], imm=-1)
    elif words == ["async", "wait_group"]:
        asm.emit("cp.async.wait_group", [], [], imm=int(ins.operands[0], 0))
    elif words in (["async", "shared", "global"], ["async", "shared::cta", "global"]):
        copy_async(asm, ins)
    else:
        asm.refuse()


def copy_async(asm: Assembler, ins: Instruction):
    operands = list(ins.operands)
    if "L2::cache_hint" in ins.modifiers:
        operands.pop()
    _, to, to_offset = asm.address(operands[0])
    _, of, of_offset = asm.address(operands[1])
    size = int(operands[2], 0)
    if size not in ((16,) if "cg" in ins.modifiers else (4, 8, 16)):
        asm.refuse("size")
    third, flags, form = asm.constant(size, 4), Flag.ZERO_FILL, ""
    if len(operands) == 4:
        found = asm.find(operands[3].lstrip("!"))
        if isinstance(found, Register) and not found.width:
            third, flags, form = asm.source(operands[3], 0), Flag.IGNORE, ".ignore"
        else:
            third = asm.source(operands[3], 4)
    asm.emit(
        f"cp.async{form}.b{size}", [], [to, of, third], imm=to_offset, target=of_offset, flags=flags
    )


@rule("fence", "membar", "nanosleep", "prefetch", "prefetchu", "pmevent")
def without_effect(asm: Assembler, ins: Instruction):
    known = {
        "fence": _SCOPES | {"sc", "acq_rel"},
        "membar": {"cta", "gl", "sys"},
        "nanosleep": {"u32"},
    }
    known |= {"prefetch": {"global", "local", "L1", "L2"}, "prefetchu": {"L1"}, "pmevent": set()}
    if set(ins.modifiers) - known[ins.opcode]:
        asm.refuse()
    asm.emit("nothing", [], [])


@rule("createpolicy")
def createpolicy(asm: Assembler, ins: Instruction):
    asm.emit("mov.b64", ins.operands[:1], ["0"])


# -- control


def label(asm: Assembler, name: str) -> Label:
    found = asm.find(name)
    if not isinstance(found, Label):
        asm.refuse(name)
    return found


@rule("bra")
def bra(asm: Assembler, ins: Instruction):
    if set(ins.modifiers) - {"uni"}:
        asm.refuse()
    asm.emit("bra", [], [], kind=Kind.BRANCH, label=label(asm, ins.operands[0]))


@rule("brx")
def brx(asm: Assembler, ins: Instruction):
    targets = label(asm, ins.operands[1])
    if not targets.targets or ins.modifiers[0] != "idx":
        asm.refuse()
    asm.emit(
        "brx.idx", [], ins.operands[:1], kind=Kind.INDEXED, imm=len(targets.targets), label=targets
    )


@rule("exit", "ret")
def leave(asm: Assembler, ins: Instruction):
    if set(ins.modifiers) - {"uni"}:
        asm.refuse()
    if ins.opcode == "ret" and asm.frame.function is not asm.kernel:
        asm.emit("bra", [], [], kind=Kind.BRANCH, label=asm.frame.end)
    else:
        asm.emit("exit", [], [], kind=Kind.EXIT)


@rule("trap", "brkpt")
def trap(asm: Assembler, ins: Instruction):
    if ins.modifiers:
        asm.refuse()
    asm.emit("trap", [], [])


@rule("call")
def call(asm: Assembler, ins: Instruction):
    names = [text for text in ins.operands if not text.startswith("(")]
    function = asm.unit.functions.get(names[0]) if len(names) == 1 else None
    if not isinstance(function, Function) or ins.guard or set(ins.modifiers) - {"uni"}:
        asm.refuse("a call that cannot be inlined")
    at = ins.operands.index(names[0])
    parameters = {}
    for texts, variables in (
        (ins.operands[:at], function.returns),
        (ins.operands[at + 1 :], function.parameters),
    ):
        given = [name for text in texts for name in split_operands(text.strip("() \n\t"))]
        if len(given) != len(variables):
            asm.refuse("number of parameters")
        parameters |= {
            variable: asm.frame.local[asm.find(name)]
            for name, variable in zip(given, variables, strict=True)
        }
    asm.inline(function, parameters)


# -- lanes together


@rule("bar", "barrier")
def bar(asm: Assembler, ins: Instruction):
    words = [word for word in ins.modifiers if word not in ("cta", "aligned")]
    if words == ["warp", "sync"]:
        asm.emit("bar.warp.sync", [], ins.operands, kind=Kind.WARP_SYNC)
    elif words in (["sync"], ["arrive"]):
        operands = ins.operands + ["0"] * (2 - len(ins.operands))
        flags = Flag.ARRIVE if words == ["arrive"] else 0
        asm.emit("bar", [], operands, kind=Kind.BARRIER, flags=flags)
    elif words[:1] == ["red"]:
        name = asm.lookup(".".join(["bar", *words]))
        out, number, *count, predicate = ins.operands
        code = ["popc", "and", "or"].index(words[1])
        operands = [number, *(count or ["0"]), predicate]
        asm.emit(name, [out], operands, kind=Kind.BARRIER, target=1, imm=code)
    else:
        asm.refuse()


@rule("shfl", "vote", "match", "redux")
def collective(asm: Assembler, ins: Instruction):
    words = list(ins.modifiers)
    if "sync" not in words:
        asm.refuse("without .sync")
    words.remove("sync")
    name = asm.lookup(".".join([ins.opcode, *words]), ".".join([ins.opcode, *words[:-1], "u32"]))
    outputs = [text.strip() for text in ins.operands[0].split("|")]
    wanted = len(asm.handlers[name].outputs)
    outputs += ["_"] * (wanted - len(outputs))
    sources = ins.operands[1:]
    asm.emit(name, outputs, sources, kind=Kind.MEMBERS, target=len(outputs) + len(sources) - 1)


@rule("activemask")
def activemask(asm: Assembler, ins: Instruction):
    asm.emit("activemask.b32", ins.operands, [])


@rule("ldmatrix")
def ldmatrix(asm: Assembler, ins: Instruction):
    words = ins.modifiers
    found = re.fullmatch(
        r"sync\.aligned\.m8n8\.(x[124])(\.trans)?\.shared(::cta)?\.b16", ".".join(words)
    )
    if not found:
        asm.refuse()
    outputs = list(split_operands(ins.operands[0].strip("{} ")))
    _, row, offset = asm.address(ins.operands[1])
    asm.emit(f"ldmatrix.{found[1]}{found[2] or ''}", outputs, [row], kind=Kind.ALIGNED, imm=offset)


@rule("mma")
def mma(asm: Assembler, ins: Instruction):
    found = re.fullmatch(r"sync\.aligned\.(m16n8k\d+)\.row\.col\.([\w.]+)", ".".join(ins.modifiers))
    if not found:
        asm.refuse()
    name = asm.lookup(f"mma.{found[1]}.{found[2]}")
    groups = [list(split_operands(text.strip("{} "))) for text in ins.operands]
    sources = [text for group in groups[1:] for text in group]
    asm.emit(name, groups[0], sources, kind=Kind.ALIGNED)
