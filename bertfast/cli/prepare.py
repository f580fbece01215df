"""`bertfast prepare`: documents on disk to a store of tokens."""

from __future__ import annotations

import os
import sys

import click

from ..checkpoint.hub import resolve
from ..data.prepare import prepare as prepare_store
from ..data.segments import SEGMENTERS
from ..data.vocabulary import TOKENIZER_FILES


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@click.command(
    epilog="""\b
Examples:
  bertfast prepare books.txt -o store --tokenizer MODEL
  bertfast prepare wiki-*.parquet -o store --tokenizer MODEL --workers 16
  bertfast prepare n.jsonl -o s --tokenizer MODEL --language zh --words jieba

A run that is stopped is gone on with by the same command.
"""
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="STORE", help="Folder to write.")
@click.option(
    "--tokenizer",
    required=True,
    metavar="MODEL",
    help="A checkpoint, on the hub too, or the folder of bertfast vocab.",
)
@click.option("--language", default="en", show_default=True, help="ISO 639 code, for sentences.")
@click.option(
    "--field", default="text", show_default=True, help="Where jsonl, parquet, datasets have it."
)
@click.option(
    "--sentences",
    metavar="MODULE:FUNCTION",
    help="Splits a document into sentences, instead of the language's rules.",
)
@click.option(
    "--words",
    type=click.Choice(SEGMENTERS),
    help="Chinese words, for masks of whole ones.  [default: words of ## pieces]",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes.  [default: one for each processor]"
)
def prepare(
    inputs: tuple[str, ...],
    output: str,
    tokenizer: str,
    language: str,
    field: str,
    sentences: str | None,
    words: str | None,
    workers: int | None,
) -> None:
    """Turn documents into a store of tokens for pretraining.

    INPUT is a .txt file with blank lines between documents, a .jsonl or .parquet file with a
    document in each record, or a folder that datasets.load_from_disk reads.
    """
    if sentences is not None:
        sys.path.insert(0, os.getcwd())  # where a user's module lies
    store = prepare_store(
        inputs,
        output,
        tokenizer=resolve(tokenizer, allow_patterns=TOKENIZER_FILES),
        language=language,
        field=field,
        sentence_hook=sentences,
        words=words,
        workers=workers or processors(),
    )
    click.echo(
        f"{output}: {store.documents} documents, {store.sentences} sentences, {store.tokens} tokens"
        f" of a vocabulary of {store.vocab_size}",
        err=True,
    )
    if store.documents == 1:
        click.echo(
            "One document gives no false next sentence: pretrain with next_sentence: false.",
            err=True,
        )
