"""`bertfast reproduce`: BERT's published figures, measured with a model."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..tasks.published import NAMES
from .encode import device_option


@click.command(
    epilog="""\b
Examples:
  bertfast reproduce squad --model MODEL --data-dir squad -o run
  bertfast reproduce glue --model MODEL --data-dir glue -o run --sweep
  bertfast reproduce ner --model MODEL --data-dir conll --dry-run
  bertfast reproduce params --model MODEL

Files have their official names. The same command goes on with a run that
was stopped; what is done is not done again.
"""
)
@click.argument("name", type=click.Choice(NAMES), metavar="NAME")
@click.option("--model", required=True, help="The checkpoint to begin with, or to measure.")
@click.option("--data-dir", metavar="DIR", help="Folder of the files; of nsp, a store.")
@click.option("-o", "--output", metavar="RUN", help="Folder of the run, for models and figures.")
@click.option("--sweep", is_flag=True, help="glue, mnli, ner: the best of the paper's rates.")
@click.option("--dry-run", is_flag=True, help="Tell files, recipe, steps, figures; run nothing.")
@device_option
def reproduce(
    name: str,
    model: str,
    data_dir: str | None,
    output: str | None,
    sweep: bool,
    dry_run: bool,
    device: Any,
) -> None:
    """Measure BERT's published figures with a MODEL of one's own.

    NAME is squad, glue, mnli, swag, ner, nsp (next sentences) or params.
    """
    from ..training.reproduce import describe
    from ..training.reproduce import reproduce as run
    from ..training.run import Stopped

    say = lambda line: click.echo(line, err=True)  # noqa: E731
    if dry_run:
        click.echo(describe(name, model, data_dir, sweep=sweep, say=say))
        return
    try:
        boards = run(name, model, data_dir, output, sweep=sweep, device=device, say=say)
    except Stopped as stopped:
        click.echo(f"bertfast: {stopped}; the same command goes on there", err=True)
        sys.exit(128 + stopped.number)
    click.echo("\n\n".join(board.as_text() for board in boards))
