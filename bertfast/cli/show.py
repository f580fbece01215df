"""`bertfast show`: what a step of a run sees."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import click

from ..data.masking import NO_LABEL
from ..data.store import Store
from ..training.recipe import read_recipe


@click.command(
    epilog="""\b
Examples:
  bertfast show STORE recipe.yaml --step 1000
  bertfast show STORE recipe.yaml --step 1000 --rank 3 --processes 8

A masked word is shown as {what stands there|what was there}: {[MASK]|hairy}, {apple|hairy} or
{hairy|hairy}.
"""
)
@click.argument("store")
@click.argument("recipe")
@click.option("--step", type=click.IntRange(1), required=True, help="Of the run, from 1.")
@click.option("--rank", type=click.IntRange(0), help="Of one process.  [default: all]")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--examples", type=click.IntRange(1), help="The first so many.  [default: all]")
def show(
    store: str, recipe: str, step: int, rank: int | None, processes: int, examples: int | None
) -> None:
    """Print the examples of a step, with masked words marked.

    Nothing is drawn anew: examples, masks and their shares of processes are functions of the
    recipe and the step.
    """
    if rank is not None and rank >= processes:
        raise click.BadParameter(f"from 0 to {processes - 1}", param_hint="--rank")
    left = examples
    for line, counts in lines(store, recipe, step, rank, processes):
        if counts and left is not None:
            if left == 0:
                return
            left -= 1
        click.echo(line)


def lines(
    store: str, recipe: str, step: int, rank: int | None, processes: int
) -> Iterator[tuple[str, bool]]:
    """The lines to print, and whether each is an example."""
    from ..training.loop import Steps
    from ..training.pretraining import make_config, make_tasks

    source = Store.open(store)
    found = read_recipe(recipe, store=store)
    steps = Steps(found, make_tasks(found, source), make_config(found, source))
    words = _words(source)
    for number in range(processes) if rank is None else [rank]:
        plan = steps.plan(step - 1, number, processes)
        task = steps.tasks[plan.phase]
        for index, part in enumerate(plan.mine):
            batch = task.batch(part)
            tokens = int(batch.cu_seqlens[-1])
            yield f"process {number}, micro-batch {index}: {tokens} tokens", False
            for text in _texts(batch, words):
                yield text, True


def _words(store: Store) -> list[str]:
    from ..text.tokenizer import Tokenizer

    backend = Tokenizer.from_folder(store.tokenizer_folder).backend
    return [backend.id_to_token(index) or f"[{index}]" for index in range(store.vocab_size)]


def _texts(batch: Any, words: list[str]) -> Iterator[str]:
    ids, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    starts = batch.cu_seqlens.tolist()
    for row, (start, end) in enumerate(itertools.pairwise(starts)):
        shown = [
            words[token] if label == NO_LABEL else f"{{{words[token]}|{words[label]}}}"
            for token, label in zip(ids[start:end], labels[start:end], strict=True)
        ]
        follows = ""
        if batch.next_sentence_label is not None:
            follows = " random" if batch.next_sentence_label[row] else " follows"
        yield f"{int(batch.example_ids[row])}{follows}: {' '.join(shown)}"
