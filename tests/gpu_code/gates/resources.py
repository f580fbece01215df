"""What a compiled kernel takes and what instructions it is made of, read from its cubin and its PTX."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# Global accesses: ld.global / st.global with their vector and type, and cp.async with its bytes.
_ACCESS = re.compile(
    r"\b(?:ld|st)\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(?P<lanes>[248]))?\.[bfsu](?P<bits>8|16|32|64|128)\b"
    r"|\bcp\.async\.c[ag]\.shared\.global(?:\.\w+(?:::\w+)*)* [^;]*?,[^;]*?, (?P<bytes>0x[0-9a-f]+|\d+)"
)
_TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


class Usage(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes of a thread
    shared: int  # bytes of a block, static
    local: int  # bytes of a thread: spills


@functools.lru_cache(maxsize=1024)
def usage(cubin: bytes) -> Usage:
    """What `cuobjdump --dump-resource-usage` says of the only kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _USAGE.findall(text)
    assert len(found) == 1, f"one kernel expected in\n{text}"
    return Usage(*map(int, found[0]))


def tensor_core_instructions(ptx: str) -> set[str]:
    """Which kinds of matrix instructions the PTX holds."""
    return set(_TENSOR_CORES.findall(ptx))


def global_accesses(ptx: str) -> dict[int, int]:
    """Instructions that touch global memory, by the bytes that one lane moves."""
    widths: dict[int, int] = {}
    for match in _ACCESS.finditer(ptx):
        vector = int(match["bits"] or 0) // 8 * int(match["lanes"] or 1)
        width = int(match["bytes"], 0) if match["bytes"] else vector
        widths[width] = widths.get(width, 0) + 1
    return widths


def wide_share(ptx: str) -> float:
    """Of the bytes that all these instructions move, the share moved 16 bytes a lane (or more)."""
    widths = global_accesses(ptx)
    total = sum(width * count for width, count in widths.items())
    wide = sum(width * count for width, count in widths.items() if width >= 16)
    return wide / total if total else 1.0
