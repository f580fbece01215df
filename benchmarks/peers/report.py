"""The results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from .contenders import CONTENDERS

BY_NAME = {contender.name: contender for contender in CONTENDERS}
TITLES = {"minilm-l6": "MiniLM-L6", "base": "BERT-base"}


def write(results: dict, folder: Path) -> None:
    """peers.json and peers.md."""
    for found in results["models"].values():
        for load in found["loads"].values():
            _add_ratios(load)
    text = json.dumps(results, indent=1)
    (folder / "peers.json").write_text(text + "\n", encoding="utf-8")
    (folder / "peers.md").write_text("\n".join(_lines(results)) + "\n", encoding="utf-8")


def _add_ratios(load: dict) -> None:
    """The fastest fp32 peer of a load, and how many times as fast each contender of ours is: a median over rounds."""
    timed = {name: found for name, found in load["contenders"].items() if "ms" in found}
    peers = [name for name in timed if BY_NAME[name].precision == "fp32" and not BY_NAME[name].ours]
    if not peers:
        return
    best = load["best_fp32_peer"] = min(peers, key=lambda name: timed[name]["ms"])
    for name, found in timed.items():
        if BY_NAME[name].ours:
            pairs = zip(timed[best]["seconds"], found["seconds"], strict=True)
            found["speed_over_best_fp32_peer"] = median(peer / ours for peer, ours in pairs)


def _lines(results: dict) -> Iterator[str]:
    machine = results["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    yield f"`{results['command']}`, {machine['date']}: {machine['processor']}, {machine['cpus']} CPUs,"
    yield f"{machine['instruction_set']}, {machine['threads']} threads; in this run"
    yield f"{machine['fma_flops'] / 1e9:.0f} GFLOP/s of fp32 multiply-adds at the peak and"
    yield f"{machine['read_bytes'] / 1e9:.1f} GB/s read from memory."
    yield f"Medians of {results['rounds']} rounds. {versions}."
    if "given_up" in results:
        yield f"\n**Given up, so incomplete**: {results['given_up']}."
    for shape, found in results["models"].items():
        yield f"\n### {TITLES[shape]}\n"
        yield from _times(found)
        yield ""
        yield from _accuracy_and_memory(found)
    yield ""
    for name, reason in results["absent"].items():
        yield f"- {name} left out: {reason}."
    for shape, found in results["models"].items():
        for name, reason in _failures(found):
            yield f"- {name} failed ({TITLES[shape]}): {reason}."


def _times(found: dict) -> Iterator[str]:
    """A row a contender, a column a load; the fastest fp32 peer is bold. Then ours over that peer."""
    loads = found["loads"]
    yield from _head("ms", loads)
    ours = []
    for name in names(found):
        cells, ratios = [], []
        for load in loads.values():
            figures = load["contenders"].get(name, {})
            mark = "**" if load.get("best_fp32_peer") == name else ""
            cells.append(f"{mark}{figures['ms']:.4g}{mark}" if "ms" in figures else "–")
            ratio = figures.get("speed_over_best_fp32_peer")
            ratios.append("–" if ratio is None else f"{ratio:.2f}")
        yield _row(name, cells)
        if BY_NAME[name].ours:
            ours.append(_row(f"{name}, × fastest fp32 peer", ratios))
    yield from ours


def _accuracy_and_memory(found: dict) -> Iterator[str]:
    """The worst of all loads; resident MiB."""
    columns = ("max error", "worst cosine", "MiB loaded", "MiB after all loads", "MiB at the peak")
    yield from _head("against float64; memory", columns)
    for name in names(found):
        checked = [load["contenders"].get(name, {}) for load in found["loads"].values()]
        checked = [figures for figures in checked if "max_error" in figures]
        cells = ["–", "–"]
        if checked:
            error = max(figures["max_error"] for figures in checked)
            cosine = min(figures["worst_cosine"] for figures in checked)
            cells = [f"{error:.1e}", f"{cosine:.7f}"]
        memory = found["memory"].get(name, {})
        for moment, key in (("loaded", "resident"), ("after", "resident"), ("after", "peak")):
            cells.append(f"{memory[moment][key]:,.0f}" if moment in memory else "–")
        yield _row(name, cells)


def _failures(found: dict) -> Iterator[tuple[str, str]]:
    yield from found["failed"].items()
    for load, figures in found["loads"].items():
        for name, figure in figures["contenders"].items():
            if "failed" in figure:
                yield name, f"{load}: {figure['failed']}"


def names(found: dict) -> list[str]:
    """Whoever has a figure, in the order of `CONTENDERS`."""
    known = {name for load in found["loads"].values() for name in load["contenders"]}
    return [name for name in BY_NAME if name in known]


def _head(first: str, columns: object) -> Iterator[str]:
    columns = list(columns)
    yield _row(first, columns)
    yield "|---" * (len(columns) + 1) + "|"


def _row(first: str, cells: list[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
