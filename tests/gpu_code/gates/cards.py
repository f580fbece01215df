"""What one multiprocessor and one block may have, by compute capability (CUDA C++ Programming Guide, table of technical
specifications by compute capability), and how many blocks of a kernel fit.
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """Limits of one compute capability; shared memory in bytes."""

    warps: int
    blocks: int
    shared: int  # of a multiprocessor
    shared_block: int  # of one block, opted in
    registers: int = 65536


KIB = 1024
CARDS = {
    80: Card(64, 32, 164 * KIB, 163 * KIB),
    86: Card(48, 16, 100 * KIB, 99 * KIB),
    89: Card(48, 24, 100 * KIB, 99 * KIB),
    90: Card(64, 32, 228 * KIB, 227 * KIB),
    100: Card(64, 32, 228 * KIB, 227 * KIB),
    120: Card(48, 24, 100 * KIB, 99 * KIB),
}
_RESERVED_SHARED = 1024  # what the system takes of each block's share
_WARP_REGISTERS = 256  # registers are given to a warp in steps of this


def resident_blocks(card: Card, warps: int, registers: int, shared: int) -> int:
    """Blocks of a kernel that one multiprocessor holds at once; 0 where not even one fits.

    Args:
        warps: of a block. registers: of a thread. shared: bytes of a block, static and dynamic.
    """
    if shared > card.shared_block:
        return 0
    a_warp = -(-registers * 32 // _WARP_REGISTERS) * _WARP_REGISTERS
    by_registers = card.registers // (a_warp * warps) if registers else card.blocks
    by_shared = card.shared // (shared + _RESERVED_SHARED)
    return min(card.blocks, card.warps // warps, by_registers, by_shared)
