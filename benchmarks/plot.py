"""The plot of a table of a GPU's times, timed or predicted: a panel an operation and direction, a bar a contender."""

from __future__ import annotations

from pathlib import Path


def draw(title: str, rows: list[dict], file: Path) -> None:
    """Microseconds (log scale) over loads, as an image; needs matplotlib.

    rows: dicts with operation, load, direction and microseconds {contender or card: time}.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    directions = list(dict.fromkeys(row["direction"] for row in rows))
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    series = list(dict.fromkeys(name for row in rows for name in row["microseconds"]))
    shape = (len(operations), len(directions))
    size = (7 * shape[1], 2.4 * shape[0])
    figure, panels = pyplot.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for line, operation in enumerate(operations):
        for column, direction in enumerate(directions):
            panel = panels[line][column]
            wanted = [
                row
                for row in rows
                if (row["operation"], row["direction"]) == (operation, direction)
            ]
            _bars(panel, wanted, series)
            panel.set_title(f"{operation}, {direction}", fontsize=9)
    for panel in panels[:, 0]:
        panel.set_ylabel("µs")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=f"C{i}") for i in range(len(series))]
    figure.legend(handles, series, loc="outside lower center", ncols=len(series))
    figure.suptitle(title)
    new = file.with_suffix(".new")
    figure.savefig(new, format=file.suffix.removeprefix("."), dpi=110)
    pyplot.close(figure)
    new.replace(file)


def _bars(panel, rows: list[dict], series: list[str]) -> None:
    """A group of bars a load; a contender that was skipped leaves its place empty."""
    width = 0.8 / len(series)
    for place, name in enumerate(series):
        known = [
            (x, row["microseconds"][name])
            for x, row in enumerate(rows)
            if name in row["microseconds"]
        ]
        positions = [x + (place - (len(series) - 1) / 2) * width for x, _ in known]
        panel.bar(positions, [time for _, time in known], width, color=f"C{place}")
    panel.set_yscale("log")
    panel.set_xticks(range(len(rows)), [row["load"] for row in rows], fontsize=7)
    panel.tick_params(axis="y", labelsize=7)
