"""The report of a plan, Markdown, from what the steps' JSONs hold.

A column's unit is the end of its name: _us, _ms, _per_s, _share, _x are timed, with `predicted` before it they are
predicted. Of a stand-in no such figure is printed unless it is predicted: nothing was timed.
"""

from __future__ import annotations

from collections.abc import Sequence

TIMED = ("_us", "_ms", "_per_s", "_share", "_x")
UNITS = {"_us": " µs", "_ms": " ms", "_per_s": "/s", "_share": " (share)", "_x": " ×"}
NOT_TIMED = "·"
PREDICTED = "predicted"


def text(steps: Sequence[dict]) -> str:
    """The whole report."""
    header = next((step["header"] for step in steps if "header" in step), {})
    stand_in = any(step.get("header", {}).get("stand_in") for step in steps)
    parts = [_title(header, stand_in), _outcomes(steps)]
    parts += [_step(step, stand_in) for step in steps]
    return "\n".join(parts)


def _title(header: dict, stand_in: bool) -> str:
    device = header.get("device", "no device answered")
    lines = [
        f"# bertfast, GPU plan: {'STAND-IN, no GPU' if stand_in else f'timed on {device}'}",
        "",
    ]
    if stand_in:
        lines += [f"Every step was walked through on a CPU; nothing was timed ({NOT_TIMED}).", ""]
    else:
        lines += [f"Figures are timed on {device}; columns marked *{PREDICTED}* are not.", ""]
    lines += [f"- {name}: {value}" for name, value in header.items() if name != "stand_in"]
    return "\n".join(lines) + "\n"


def _outcomes(steps: Sequence[dict]) -> str:
    rows = [
        {
            "step": step["title"],
            "outcome": step["outcome"],
            "seconds": f"{step['seconds']:.0f} of {step['limit_seconds']}",
        }
        for step in steps
    ]
    return _table(rows, False)


def _step(step: dict, stand_in: bool) -> str:
    lines = [f"## {step['title']}: {step['outcome']}", ""]
    for title, rows in step.get("tables", {}).items():
        lines += [f"### {title}", "", _table(rows, stand_in)]
    for what, kind in (("failures", "Failed"), ("skipped", "Left out")):
        found = step.get(what, {})
        lines += [f"- {kind}: {name}: {reason}" for name, reason in found.items()]
    if step["outcome"] != "done" and step["output"]:
        lines += ["", "```", *step["output"], "```"]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict], stand_in: bool) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [" | ".join(map(_heading, columns)), "|".join(["---"] * len(columns))]
    lines += [" | ".join(_cell(c, row.get(c), stand_in) for c in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _heading(column: str) -> str:
    unit = next((end for end in TIMED if column.endswith(end)), "")
    name = column.removesuffix(unit).replace("_", " ")
    name = name.replace(PREDICTED, f"*{PREDICTED}*")
    return name + UNITS.get(unit, "")


def _cell(column: str, value: object, stand_in: bool) -> str:
    if value is None:
        return "–"
    if stand_in and column.endswith(TIMED) and not column.startswith(PREDICTED):
        return NOT_TIMED
    if isinstance(value, float):
        return f"{value:.3e}" if abs(value) >= 1e6 else f"{value:.4g}"
    return str(value).replace("|", "\\|")
