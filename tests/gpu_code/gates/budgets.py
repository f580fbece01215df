"""What each shipped Triton kernel may cost. A budget changes by editing this table, with the reason.

A kernel without a line of its own has the default: one resident block, nine tenths of the bytes in 16-byte accesses.
Spills and stack are zero for all of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """Fields:
    blocks: that must fit on a multiprocessor at once.
    wide: of the bytes that the kernel's global accesses move, the least share in accesses of 16 bytes a lane.
    why: the reason where it is not the default.
    """

    blocks: int = 1
    wide: float = 0.9
    why: str = ""


DEFAULT = Budget()

# (kernel's name, or the start of it, and of the census's case) -> Budget; the longest that fits counts.
BUDGETS: dict[tuple[str, str], Budget] = {}

# Launches of one layer, memsets counted.
LAUNCHES_FORWARD = 7
LAUNCHES_BOTH = 20
LAUNCHES_DETERMINISTIC = 28

# Distinct bytes that an operation touches, against the formula of its fused design.
BYTES = 1.05


def budget(kernel: str, case: str) -> Budget:
    """The budget of a kernel in a case of the census."""
    fitting = [key for key in BUDGETS if kernel.startswith(key[0]) and case.startswith(key[1])]
    return BUDGETS[max(fitting, key=lambda key: (len(key[0]), len(key[1])))] if fitting else DEFAULT


# (operation, direction) -> (what it may touch of the formula, why it is more)
BYTES_MORE: dict[tuple[str, str], tuple[float, str]] = {}


def bytes_allowed(operation: str, direction: str) -> float:
    """The share of the formula's bytes that the kernels of an operation may touch."""
    return BYTES_MORE.get((operation, direction), (BYTES, ""))[0]
