"""Takes synchronisation out of PTX, one instruction at a time: what checks races must report each that was needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from gpu_code.executor import Fault

# Barriers of a block and of a warp, and waits for asynchronous copies; arrivals and commits are no waits.
_SITE = re.compile(
    r"(?:@!?%\w+\s+)?(?:bar\.(?:cta\.)?sync|barrier(?:\.cta)?\.sync|bar\.warp\.sync"
    r"|cp\.async\.wait_group|cp\.async\.wait_all)\b[^;]*;"
)


class Site(NamedTuple):
    """One instruction of a PTX text: its line, counted from 1, and what stands there."""

    line: int
    text: str


class Survey(NamedTuple):
    """What became of each site: the faults that its removal brought, or that it can be missed."""

    reported: dict[Site, Fault]
    redundant: list[Site]


def sites(ptx: str, entry: str = "") -> list[Site]:
    """The barriers and waits of a PTX text, or of one kernel in it."""
    start = ptx.index(f".entry {entry}(") if entry else 0
    end = ptx.index("\n}", start) if entry else len(ptx)
    first = ptx.count("\n", 0, start) + 1
    found = ((n, _SITE.search(line)) for n, line in enumerate(ptx[start:end].split("\n"), first))
    return [Site(number, match.group()) for number, match in found if match]


def without(ptx: str, removed: list[Site]) -> str:
    """The text with these sites removed; all lines keep their numbers."""
    lines = ptx.split("\n")
    for site in removed:
        lines[site.line - 1] = lines[site.line - 1].replace(site.text, "", 1)
    return "\n".join(lines)


def survey(ptx: str, run: Callable[[str], object], entry: str = "") -> Survey:
    """Removes each site in turn and runs what is left; `run` raises Fault for what it finds.

    Compilers emit some twice: a site that nobody misses stays removed while the next ones are tried, so of twins one is
    redundant and the other reported. All redundant sites together were removed in the end without a fault.
    """
    reported, redundant = {}, []
    for site in sites(ptx, entry):
        try:
            run(without(ptx, [*redundant, site]))
        except Fault as fault:
            reported[site] = fault
        else:
            redundant.append(site)
    return Survey(reported, redundant)
