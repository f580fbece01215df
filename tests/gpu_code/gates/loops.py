"""What one turn of a kernel's hot loop issues, counted in its SASS.

The hot loops are the innermost ones that hold tensor-core products (mma.sync, wgmma; tcgen05's are not counted). Of
the ways through such a loop the one counts that meets the most copies (cp.async), and of those the shortest: whole
tiles, no dropout, no mask. It is what a warp issues in nearly every turn. Products under a predicate, which few blocks
need, count as instructions only. Nothing runs here.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

PRODUCTS = ("HMMA", "HGMMA")
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.M)
_JUMP = re.compile(r"^(@!?U?P\w+ )?(?:BRA|BRX|RET|EXIT)\b\S*\s*([^;]*)")


class Turn(NamedTuple):
    """One turn of a loop: instructions that a warp issues, and how many of them are products and copies."""

    instructions: int
    products: int
    copies: int


class _Block(NamedTuple):
    first: int
    text: list[str]
    next: list[int]  # first addresses of the blocks that may follow


def reads(sass: str) -> int:
    """The most reads of 16 bytes in one straight piece of a kernel's code: they are on their way together."""
    wide = re.compile(r"\bLDG\.\S*\b128\b")
    return max(sum(map(bool, map(wide.search, block.text))) for block in _of(sass).values())


def turns(sass: str) -> list[Turn]:
    """Of each hot loop of a kernel, in the order of their addresses."""
    blocks = _of(sass)
    loops = [
        (head, latch, _body(blocks, head, latch))
        for latch, block in blocks.items()
        for head in block.next
        if head <= latch
    ]
    hot = [loop for loop in loops if any(_count(blocks[at], *PRODUCTS) for at in loop[2])]
    inner = [x for x in hot if not any(y[2] < x[2] for y in hot)]
    return [_turn(blocks, *loop) for loop in sorted(inner, key=lambda loop: loop[:2])]


def _of(sass: str) -> dict[int, _Block]:
    return _blocks([(int(at, 16), text) for at, text in _LINE.findall(sass)])


def _blocks(lines: list[tuple[int, str]]) -> dict[int, _Block]:
    jumps = {at: _successors(text) for at, text in lines if _JUMP.match(text)}
    after = {at: following for (at, _), (following, _) in pairwise(lines)}
    starts = {lines[0][0], *(to for targets, _ in jumps.values() for to in targets)}
    starts |= {after[at] for at in jumps if at in after}
    blocks: dict[int, _Block] = {}
    for at, text in lines:
        if at in starts:
            block = blocks[at] = _Block(at, [], [])
        block.text.append(text)
        targets, falls = jumps.get(at, ([], True))
        ends = at in jumps or after.get(at) in starts
        if ends:
            block.next.extend([*targets, *([after[at]] if falls and at in after else [])])
    return blocks


def _successors(text: str) -> tuple[list[int], bool]:
    """The targets of a jump, and whether the next instruction may follow it."""
    predicate, operands = _JUMP.match(text).groups()
    conditional = bool(predicate) or bool(re.match(r"!?U?P\w+,", operands)) or "BRA.DIV" in text
    return [int(to, 16) for to in re.findall(r"0x[0-9a-f]+", operands)], conditional


def _body(blocks: dict[int, _Block], head: int, latch: int) -> frozenset[int]:
    """The natural loop of a jump back: all blocks that reach it and are not before the head."""
    body, open_ = {head}, [latch]
    while open_:
        at = open_.pop()
        if at not in body:
            body.add(at)
            open_ += [first for first, block in blocks.items() if at in block.next]
    return frozenset(body)


def _turn(blocks: dict[int, _Block], head: int, latch: int, body: frozenset[int]) -> Turn:
    best: dict[int, tuple[int, int, list[int]]] = {}  # copies, -instructions, the blocks from here

    def walk(at: int, before: frozenset[int]) -> tuple[int, int, list[int]] | None:
        if at not in best:
            ways = [(0, 0, [])] if at == latch else []
            for to in blocks[at].next if at != latch else []:
                if to in body and to not in before and (way := walk(to, before | {at})):
                    ways.append(way)
            if not ways:
                return None
            copies, short, path = max(ways, key=lambda way: way[:2])
            copies += _count(blocks[at], "LDGSTS")
            best[at] = (copies, short - _issued(blocks[at]), [at, *path])
        return best[at]

    path = [blocks[at] for at in walk(head, frozenset())[2]]
    return Turn(
        sum(map(_issued, path)),
        sum(_count(block, *PRODUCTS) for block in path),
        sum(_count(block, "LDGSTS") for block in path),
    )


def _issued(block: _Block) -> int:
    return sum(not text.startswith("NOP") for text in block.text)


def _count(block: _Block, *opcodes: str) -> int:
    return sum(text.split(".")[0] in opcodes for text in block.text)
