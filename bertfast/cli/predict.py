"""`bertfast predict`: a fine-tuned model's answers to the rows of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import click

from .._files import atomic_write
from ..inference.encoder import BATCH_TOKENS
from .encode import device_option, dtype_option
from .finetune import columns_of, columns_options


@click.command(
    epilog="""\b
Examples:
  bertfast predict run/model new.csv -o answers.csv
  bertfast predict run/model questions.json -o predictions.json
  bertfast predict run/model new.conll -o tagged.conll
  cut -f 2 mails.tsv | bertfast predict run/model - > answers.jsonl

INPUT has the columns that the model was trained with, unless options say others; all its columns
are written too. Of - , which is standard input, a line is a text unless --input-format says more.
The file FILE appears when it is whole, and not at all when something fails; standard output gets
each batch of rows as it is done.
"""
)
@click.argument("model")
@click.argument("input", metavar="INPUT")
@click.option("-o", "--output", default="-", metavar="FILE", help="[default: standard output]")
@columns_options
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["csv", "tsv", "jsonl", "json", "conll"]),
    help="Of the output.  [default: by the name; jsonl]",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(1),
    default=BATCH_TOKENS,
    show_default=True,
    help="Most tokens at a time.",
)
@device_option
@dtype_option
def predict(
    model: str,
    output: str,
    output_format: str | None,
    batch_tokens: int,
    device: str | None,
    dtype: str | None,
    **given: Any,
) -> None:
    """Answer the rows of INPUT with a fine-tuned MODEL."""
    from ..tasks.predictor import WINDOW, load
    from ..tasks.reading import read_inputs
    from ..tasks.writing import format_of, writer_of

    path, said = given.pop("input"), given["input_format"]
    kind = format_of(output, output_format)
    predictor = load(model, device, dtype)
    form = predictor.form
    columns = columns_of(given, replace(form.columns, kind=None, header=None))
    read = read_inputs(predictor.kind, path, columns, said)
    with _open(output) as handle, writer_of(handle, kind, predictor.kind) as write:
        for start in range(0, len(read.inputs), WINDOW):
            some = slice(start, start + WINDOW)
            found = predictor.found(read.inputs[some], batch_tokens)
            write(read.rows[some], read.inputs[some], found)


@contextmanager
def _open(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdout
        return
    with atomic_write(path, "w") as handle:
        yield handle
