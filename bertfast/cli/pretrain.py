"""`bertfast pretrain`: a model from a store of tokens, by a recipe."""

from __future__ import annotations

import os
import sys

import click

from ..training.recipe import read_recipe
from .encode import device_option


@click.command(
    epilog="""\b
Examples:
  bertfast pretrain recipe.yaml -o run
  bertfast pretrain bert-base --store books -o run
  bertfast pretrain budget-24h --store books --budget 6h -o run
  torchrun --nproc-per-node 8 -m bertfast pretrain bert-large -o run

The same command goes on with a run that was stopped, at the very step.
"""
)
@click.argument("recipe")
@click.option("-o", "--output", required=True, metavar="RUN", help="Folder of the run.")
@click.option("--store", help="Instead of the recipe's.")
@click.option("--model", help="A checkpoint to go on with, of its own sizes.")
@click.option("--budget", help='Time for training, as 24h or 90m; makes the schedule "budget".')
@click.option("--seed", type=int, help="Instead of the recipe's.")
@device_option
def pretrain(
    recipe: str,
    output: str,
    store: str | None,
    model: str | None,
    budget: str | None,
    seed: int | None,
    device: str | None,
) -> None:
    """Pretrain BERT: masked words and the next sentence.

    RECIPE is a YAML file, or the name of one that comes with bertfast: bert-base, bert-large, budget-24h.
    """
    from ..training.pretraining import pretrain as run
    from ..training.run import Stopped

    changes = {"store": store, "seed": seed, "model": model}
    if budget is not None:
        changes |= {"budget": budget, "schedule": "budget"}
    given = {name: value for name, value in changes.items() if value is not None}
    found = read_recipe(recipe, **given)
    say = lambda line: click.echo(line, err=True)  # noqa: E731
    try:
        run(found, output, device=device, say=say)
    except Stopped as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            click.echo(f"bertfast: {stopped}; the same command goes on there", err=True)
        sys.exit(128 + stopped.number)
