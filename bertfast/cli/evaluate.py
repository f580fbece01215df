"""`bertfast evaluate`: a pretrained model on held-out documents of a store, beside what it has to beat."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

from .._files import atomic_write
from .._table import table
from ..checkpoint.hub import resolve
from ..data.store import Store
from ..inference.encoder import Encoder
from ..tasks.evaluation import Evaluation, Share
from ..tasks.evaluation import evaluate as evaluate_model
from .encode import device_option, dtype_option


@click.command(
    epilog="""\b
Examples:
  bertfast evaluate run/model store
  bertfast evaluate MODEL store --embedder all-MiniLM-L6-v2 --json model.json

MODEL is a directory with a checkpoint, or a model id on the Hugging Face hub; STORE is what
bertfast prepare made with its tokenizer.
"""
)
@click.argument("model")
@click.argument("store")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of documents that training held out; 0: all are evaluated.",
)
@click.option(
    "--length", type=int, default=128, show_default=True, help="Most tokens of an example."
)
@click.option(
    "--examples", type=click.IntRange(1), default=2000, show_default=True, help="Most of them."
)
@click.option(
    "--embedder", metavar="MODEL", help="A sentence encoder, whose cosine tells pairs apart too."
)
@click.option("--json", "json_file", metavar="FILE", help="Write what was found there, too.")
@device_option
@dtype_option
def evaluate(
    model: str,
    store: str,
    held_out: float,
    length: int,
    examples: int,
    embedder: str | None,
    json_file: str | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """Measure MODEL on held-out documents of STORE: masked words and next sentences."""
    from ..models.pretraining import load_pretrained

    opened, folder = Store.open(store), resolve(model)
    opened.check_vocabulary(folder)
    with atomic_write(json_file, "w") if json_file else nullcontext() as file:
        encoder = None if embedder is None else Encoder.from_pretrained(embedder, device=device)
        found = evaluate_model(
            load_pretrained(folder, dtype).to(device),
            opened,
            held_out=held_out,
            length=length,
            examples=examples,
            embedder=encoder,
        )
        click.echo(report(found, Path(embedder or "").name))
        if file is not None:
            about = {"model": model, "store": opened.fingerprint, "embedder": embedder}
            json.dump(about | asdict(found), file, indent=1)
            file.write("\n")


def report(found: Evaluation, embedder: str) -> str:
    """What was found as two tables; `embedder` is its name."""
    share = f"held-out documents ({found.held_out:.3g} of all)"
    which = share if found.held_out else "documents, all of the store: none is held out"
    said = (
        f"{found.documents:,} {which}\n{found.examples:,} examples of up to {found.length} tokens"
    )
    rows = [("masked words", "loss", "perplexity", "accuracy", "95 %")]
    for name, words in found.masked_lm.items():
        numbers = f"{words.loss:.4f}", f"{words.perplexity:,.2f}"
        rows.append((name, *numbers, *_cells(words.accuracy)))
    blocks = [f"{said}, {found.labels:,} masked words", table(rows, right=range(1, 5))]
    if found.next_sentence is None:
        blocks.append("next sentences: left out, the model has no such head")
        return "\n\n".join(blocks)
    rows = [("next sentence", "easy pairs", "95 %", "hard pairs", "95 %")]
    for name in found.next_sentence["easy"]:
        cells = [_cells(pairs[name]) for pairs in found.next_sentence.values()]
        rows.append((f"cosine, {embedder}" if name == "embedder" else name, *sum(cells, ())))
    return "\n\n".join([*blocks, table(rows, right=range(1, 5))])


def _cells(share: Share) -> tuple[str, str]:
    return f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"
