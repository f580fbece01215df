"""The results as bars, in two files: for light and for dark pages."""

from __future__ import annotations

from pathlib import Path

from .report import BY_NAME, TITLES, names

THEMES = {"light": "#1f2328", "dark": "#e6edf3"}  # of text, on a transparent ground
COLOURS = {"ours": "#d9480f", "fp32": "#5c7cbf", "int8": "#8a8f98"}


def write(results: dict, folder: Path) -> None:
    """peers-light.svg and peers-dark.svg; a panel a model and load, a bar a contender."""
    shapes = {shape: found for shape, found in results["models"].items() if found["loads"]}
    if not shapes:
        return
    import matplotlib

    matplotlib.use("agg")
    for theme, colour in THEMES.items():
        settings = {
            "svg.fonttype": "path",  # letters as outlines: they show where the font is missing
            "svg.hashsalt": "peers",
            "font.size": 8,
            **dict.fromkeys(("text.color", "axes.labelcolor", "ytick.color"), colour),
        }
        with matplotlib.rc_context(settings):
            figure = _draw(shapes)
            figure.savefig(folder / f"peers-{theme}.svg", transparent=True, metadata={"Date": None})


def _draw(shapes: dict) -> object:
    from matplotlib.figure import Figure

    loads = list(dict.fromkeys(load for found in shapes.values() for load in found["loads"]))
    rows = [len(names(found)) for found in shapes.values()]
    figure = Figure((2 + 1.7 * len(loads), 0.8 + 0.19 * sum(rows)), layout="constrained")
    panels = figure.subplots(len(shapes), len(loads), squeeze=False, height_ratios=rows)
    for line, (shape, found) in zip(panels, shapes.items(), strict=True):
        contenders = names(found)
        for panel, load in zip(line, loads, strict=True):
            figures = found["loads"].get(load, {}).get("contenders", {})
            _bars(panel, contenders, figures)
            panel.set_title(f"{TITLES[shape]}, {load}", fontsize=8)
        line[0].set_yticks(range(len(contenders)), contenders)
        line[0].tick_params(length=0)
    handles = [figure.patch.__class__((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    labels = ["bertfast, fp32", "other engines, fp32", "other engines, int8"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Milliseconds of a call, shorter is better", fontsize=9)
    return figure


def _bars(panel, contenders: list[str], figures: dict) -> None:
    """Times with their numbers; who was not timed leaves its place empty."""
    for place, name in enumerate(contenders):
        time = figures.get(name, {}).get("ms")
        if time is None:
            continue
        kind = "ours" if BY_NAME[name].ours else BY_NAME[name].precision
        bar = panel.barh(place, time, 0.75, color=COLOURS[kind])
        panel.bar_label(
            bar, [f"{time:.3g}" if time < 1000 else f"{time:.0f}"], padding=2, fontsize=7
        )
    panel.margins(x=0.25)
    panel.set_ylim(len(contenders) - 0.4, -0.6)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
