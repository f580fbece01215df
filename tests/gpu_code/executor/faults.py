"""What a kernel did wrong, and where."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Where an instruction stands: its line in the PTX, its text, and the source line that it was compiled from."""

    ptx_line: int
    ptx_text: str
    source: str | None


class Fault(Exception):
    """A kernel that cannot be loaded, or that broke a rule while it ran.

    Attributes:
        kind: "unknown instruction", "out of bounds", "misaligned", "unwritten read", "write to an input", "race",
            "cp.async before its wait", "two blocks", "deadlock", "divergence", "trap", "limit"...
        ptx_line, ptx_text, source: the instruction; source is "file:line" where the PTX has .loc.
        buffer, offset: the memory, with the offset of its first wrong byte.
        block, thread: their ids, (x, y, z).
    """

    def __init__(
        self,
        kind: str,
        place: Place | None = None,
        *,
        kernel: str = "",
        detail: str = "",
        buffer: str | None = None,
        offset: int | None = None,
        block: tuple[int, int, int] | None = None,
        thread: tuple[int, int, int] | None = None,
    ):
        self.kind, self.kernel, self.detail = kind, kernel, detail
        self.ptx_line, self.ptx_text, self.source = place or Place(0, "", None)
        self.buffer, self.offset, self.block, self.thread = buffer, offset, block, thread
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.kind + (f" ({self.detail})" if self.detail else "")]
        if self.buffer is not None:
            parts.append(f"{self.buffer} + {self.offset}")
        if self.block is not None:
            parts.append(f"block {self.block} thread {self.thread}")
        if self.ptx_line:
            parts.append(f"PTX line {self.ptx_line}: {self.ptx_text}")
        if self.source:
            parts.append(f"source {self.source}")
        return f"{self.kernel}: " * bool(self.kernel) + "; ".join(parts)
