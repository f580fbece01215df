"""`bertfast tune`: measure the backends of a GPU for a model, and write the tuning table that later runs read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click
import torch

from .._table import table
from ..checkpoint.hub import resolve
from ..checkpoint.load import load_bert
from ..core.weights import BertWeights
from ..dispatch.calls import Key
from ..dispatch.decisions import Decision
from ..errors import ArgumentError
from ..text.recipe import read_recipe
from ..tuning import autotune, workload, write
from .encode import device_option, dtype_option


@click.command(
    epilog="""\b
Examples:
  bertfast tune MODEL
  bertfast tune MODEL --dtype bfloat16 --training
  bertfast tune MODEL --tokens 64,4096 --length 32

MODEL is a directory with a checkpoint, or a model id on the Hugging Face hub.
The table is a file in the cache folder (bertfast info says where); what is
measured anew replaces what was there. Close other programs first.
"""
)
@click.argument("model")
@click.option(
    "--tokens", default="16,128,1024,4096", show_default=True, help="Real tokens of a batch."
)
@click.option("--length", type=click.IntRange(1), help="Tokens of a text.  [default: 128]")
@click.option("--training", is_flag=True, help="Also with dropout, and backward.")
@device_option
@dtype_option
def tune(
    model: str, tokens: str, length: int | None, training: bool, device: str | None, dtype: str | None
) -> None:  # fmt: skip
    """Measure which backend of each operation is the fastest for MODEL on a GPU."""
    counts = _counts(tokens)
    folder, place = resolve(model), place_of(device)
    weights = load_bert(folder / read_recipe(folder).transformer, dtype, place)
    length = min(length or 128, weights.max_positions)
    found: dict[Key, Decision] = {}
    for count in counts:
        for key, decision in measure(weights, count, length, training):
            if decision is not None:
                found[key] = decision
            said = decision.backend if decision else "none is right"
            click.echo(f"{key.text()}: {said}", err=True)
    click.echo(report(found))
    path = write(place, found)
    click.echo(f"\nkept in {path}" if path else "\nnot kept: there is no home folder")


def place_of(device: str | None) -> torch.device:
    """The GPU to measure. Raises ArgumentError where there is none."""
    place = torch.device(device or "cuda:0")
    if place.type == "cuda" and torch.cuda.is_available():
        return place
    got = str(place) if place.type != "cuda" else "no GPU that torch sees"
    advice = "On a CPU the backend cpu serves every size; bertfast verify compares the others."
    raise ArgumentError("--device", "a CUDA GPU", got, advice)


def measure(
    weights: BertWeights, tokens: int, length: int, training: bool
) -> Iterator[tuple[Key, Decision | None]]:
    """The decision of every operation of the model at one size of batch, as they are measured."""
    for operation, case in workload(weights, tokens, length, training):
        for direction in ("forward", "backward") if training else ("forward",):
            yield autotune(operation, direction, case, weights.dtype, weights.device, save=training)


def report(found: Mapping[Key, Decision]) -> str:
    """What was measured as a table: the winner first in each line, then the others by their time."""
    rows = [("operation", "direction", "tokens", "sizes", "microseconds")]
    for key, decision in sorted(found.items(), key=lambda item: (item[0].tokens, item[0][:2])):
        sizes = " ".join("x".join(map(str, shape)) for shape in (key.features, key.sizes) if shape)
        others = sorted(decision.seconds, key=decision.seconds.__getitem__)
        names = dict.fromkeys([decision.backend, *others])
        cells = ", ".join(f"{name} {decision.seconds[name] * 1e6:,.0f}" for name in names)
        rows.append((key.operation, key.direction, key.tokens, sizes, cells))
        for name, reason in decision.rejected.items():
            rows.append(("", "", "", "rejected", f"{name}: {reason}"))
    return table(rows, right=(2,))


def _counts(tokens: str) -> list[int]:
    try:
        counts = [int(word) for word in tokens.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ArgumentError("--tokens", "positive integers with commas between", repr(tokens))
    return counts
