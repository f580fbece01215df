"""A Markdown table of what the ecosystem's tests showed: tool, what was shown, by which way bertfast ran.

A test says what it shows with `@pytest.mark.tool(tool, shown)`, where {name} stands for the value of the parameter
`name`, and its fixture `way` which way it saw. `--matrix FILE` writes the rows whose tests all passed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bertfast import dispatch

WAYS = ("fused", "modules", "transformers")
HEAD = (
    "# What works with bertfast's models, and which way it takes\n\n"
    "Made by `make ecosystem`: each row is a test that passed, in which bertfast's class gave what transformers'\n"
    "class gives (fp32 to 1e-5 unless the test says otherwise). Ways: *fused*; *modules*, fused around modules that\n"
    "stand in the place of a Linear; *transformers*, its own forward. The README tells when each is taken.\n\n"
    "| tool | the same as transformers' class | way |\n"
    "|---|---|---|\n"
)  # fmt: skip


def way_of(log: Sequence[dispatch.Choice]) -> str:
    """transformers: its own forward ran at least once; modules: some stood in for a Linear; else fused."""
    backends = {choice.backend for choice in log}
    return next(
        (backend for backend in ("transformers", "modules") if backend in backends), "fused"
    )


class Matrix:
    """Collects reports; registered as a plugin where `--matrix` is given."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.ways: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.bad: set[tuple[str, str]] = set()

    def pytest_runtest_logreport(self, report) -> None:
        properties = report.user_properties
        for row in (value for key, value in properties if key == "tool"):
            row = tuple(row)
            if report.failed:
                self.bad.add(row)
            elif report.passed and report.when == "call":
                self.ways[row].update(value for key, value in properties if key == "way")

    def pytest_sessionfinish(self, session) -> None:
        if not hasattr(session.config, "workerinput"):  # the controller writes
            self.path.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        rows = sorted(
            (tool, shown, ", ".join(way for way in WAYS if way in ways) or "-")
            for (tool, shown), ways in self.ways.items()
            if (tool, shown) not in self.bad
        )
        return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)
