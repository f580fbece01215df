"""`bertfast vocab`: a WordPiece vocabulary of a corpus."""

from __future__ import annotations

import click

from ..data.readers import texts
from ..data.vocabulary import train_vocabulary


@click.command(
    epilog="""\b
Examples:
  bertfast vocab books.txt -o tokenizer --size 8000
  bertfast vocab news.jsonl -o tokenizer --size 21128 --chinese
"""
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Folder to write.")
@click.option(
    "--size", type=click.IntRange(1), default=30522, show_default=True, help="Most tokens."
)
@click.option("--cased", is_flag=True, help="Keep capitals and accents.")
@click.option("--chinese", is_flag=True, help="Keep as many characters as fit, not 1000.")
@click.option(
    "--unused", type=click.IntRange(0), default=0, show_default=True, help="Free tokens [unusedN]."
)
@click.option(
    "--field", default="text", show_default=True, help="Where jsonl, parquet, datasets have it."
)
def vocab(
    inputs: tuple[str, ...],
    output: str,
    size: int,
    cased: bool,
    chinese: bool,
    unused: int,
    field: str,
) -> None:
    """Make a vocabulary and the files of its tokenizer from documents.

    INPUT is what bertfast prepare takes.
    """
    count = train_vocabulary(
        lambda: texts(inputs, field),
        output,
        size=size,
        cased=cased,
        chinese=chinese,
        unused=unused,
    )
    click.echo(f"{output}: {count} tokens", err=True)
