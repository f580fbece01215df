"""The gates: what breaks a budget, and the table of every shipped kernel on every architecture."""

from __future__ import annotations

from typing import NamedTuple

from gpu_code.gates import resources
from gpu_code.gates.budgets import budget
from gpu_code.gates.cards import CARDS, resident_blocks
from gpu_code.gates.census import Shipped

_NEWER = {"wgmma.mma_async", "tcgen05.mma"}  # of sm_90 and newer only


class Row(NamedTuple):
    """One kernel on one architecture."""

    arch: int
    shipped: Shipped
    usage: resources.Usage
    shared: int
    blocks: int
    wide: float
    tensor_cores: set[str]

    @property
    def trust(self) -> str:
        """How far this code is trusted on a machine without a GPU."""
        if self.arch == 80:
            return "executed"
        return "gated, never executed" if self.tensor_cores & _NEWER else "gated"

    def __str__(self) -> str:
        cores = ",".join(sorted(self.tensor_cores)) or "-"
        return (
            f"sm_{self.arch:<4}{self.shipped!s:<72.72}{self.usage.registers:>5}{self.shared:>8}"
            f"{self.blocks:>4}{self.wide:>7.0%}  {cores:<16}{self.trust}"
        )


HEADER = (
    f"{'':7}{'operation, direction, case, dtype, kernel':<72}"
    f"{'regs':>5}{'shared':>8}{'blk':>4}{'16B':>7}  products"
)


def measure(arch: int, shipped: Shipped) -> Row:
    launch = shipped.launch
    usage = resources.usage(launch.asm["cubin"])
    shared = launch.metadata.shared
    blocks = resident_blocks(CARDS[arch], launch.metadata.num_warps, usage.registers, shared)
    ptx = launch.asm["ptx"]
    return Row(
        arch, shipped, usage, shared, blocks, resources.wide_share(ptx),
        resources.tensor_core_instructions(ptx),
    )  # fmt: skip


def faults(row: Row) -> list[str]:
    """What is out of budget, in words."""
    shipped = row.shipped
    allowed = budget(shipped.launch.name, shipped.case, shipped.dtype, row.arch)
    found = []
    if row.usage.local or row.usage.stack:
        found.append(f"{row.usage.local} bytes of spills, {row.usage.stack} of stack")
    if row.shared > CARDS[row.arch].shared_block:
        found.append(f"{row.shared} bytes of shared memory, {CARDS[row.arch].shared_block} exist")
    warps = row.blocks * shipped.launch.metadata.num_warps
    if warps < allowed.warps:
        found.append(f"{warps} resident warps, {allowed.warps} asked")
    if row.wide < allowed.wide:
        found.append(f"{row.wide:.0%} of the bytes in 16-byte accesses, {allowed.wide:.0%} asked")
    if _has_product(row.shipped) and not row.tensor_cores:
        found.append("a product without tensor-core instructions")
    return [f"sm_{row.arch} {row.shipped}: {what}" for what in found]


def _has_product(shipped: Shipped) -> bool:
    """Whether the kernel holds a product that tensor cores serve; strict fp32 has none there."""
    return "tt.dot" in shipped.launch.asm["ttir"] and shipped.dtype != "fp32"
