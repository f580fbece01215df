"""Text in columns, for what people read on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Rows of as many cells as lines, two spaces between columns; the columns numbered in `right` end flush."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        pairs = enumerate(zip(row, widths, strict=True))
        padded = (cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in pairs)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
