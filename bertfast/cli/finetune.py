"""`bertfast finetune`: a model with a task's head, from a file of examples."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import click

from .encode import device_option


def columns_options(command: Any) -> Any:
    """Where a file has what."""
    options = (
        click.option("--text", help="Column of the text (question, words).  [default: text]"),
        click.option("--text-pair", help="Column of the second text (context)."),
        click.option("--label", help="Column of the label.  [default: label]"),
        click.option("--choices", help="Columns of the choices, a,b,c; or of a list of them."),
        click.option("--prefix", help="Column of what every choice begins with."),
        click.option("--word", type=int, help="Column of a CoNLL file's words, from 0."),
        click.option("--tag", type=int, help="Column of a CoNLL file's tags; -1: the last."),
        click.option("--header", help="Names of the columns, a,b,c, of a file without them."),
        click.option(
            "--input-format",
            type=click.Choice(["csv", "tsv", "jsonl", "datasets", "conll", "txt"]),
            metavar="KIND",
            help="csv, tsv, jsonl, datasets, conll, txt.  [default: by the name]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def columns_of(given: dict[str, Any], base: Any = None) -> Any:
    """The `Columns` of a command's options, which are taken out of `given`; `base` says what is not given."""
    from ..tasks.form import Columns

    changes: dict[str, Any] = {}
    for name in ("text", "text_pair", "label", "prefix", "word", "tag"):
        changes[name] = given.pop(name)
    for name in ("choices", "header"):
        value = given.pop(name)
        changes[name] = None if value is None else tuple(value.split(","))
    kind = given.pop("input_format")
    changes["kind"] = None if kind == "conll" else kind
    return replace(base or Columns(), **{k: v for k, v in changes.items() if v is not None})


@click.command(
    epilog="""\b
Examples:
  bertfast finetune single sms.csv --model MODEL -o run --text sms
  bertfast finetune pair train.tsv --dev dev.tsv --model MODEL -o run
  bertfast finetune qa train.json --dev dev.json --model MODEL -o run
  bertfast finetune tokens train.conll --model MODEL -o run
  bertfast finetune mrpc glue --model MODEL -o run --sweep classic --seeds 3

TASK is single, pair, choice, qa, tokens or regression, or the name of a task of GLUE, whose TRAIN
is the folder of all its folders. The same command goes on with a run that was stopped.
"""
)
@click.argument("task")
@click.argument("train")
@click.option("--model", required=True, help="The checkpoint to begin with.")
@click.option("-o", "--output", required=True, metavar="RUN", help="Folder of the run.")
@click.option("--dev", help="File to evaluate on.  [default: a share of TRAIN]")
@click.option("--share", type=float, help="That share.  [default: 0.1]")
@click.option("--group", help="Column whose equal values stay on one side; title, of questions.")
@columns_options
@click.option(
    "--mismatched",
    type=click.Choice(["drop", "keep"]),
    help="Answers that are not where the file says.  [default: drop those of TRAIN]",
)
@click.option("--several", is_flag=True, help="A text may have any number of labels: a,b,c.")
@click.option("--weights", type=click.Choice(["balanced"]), help="Of classes.")
@click.option("--epochs", type=int, help="[default: 3]")
@click.option("--batch", type=int, help="Examples of a step.  [default: 32]")
@click.option("--learning-rate", type=float, help="[default: 5e-5]")
@click.option("--warmup", type=float, help="Share of the steps.  [default: 0.1]")
@click.option("--length", type=int, help="Most tokens.  [default: 128; of questions 384]")
@click.option(
    "--long", type=click.Choice(["truncate", "slide"]), help="What becomes of longer texts."
)
@click.option("--stride", type=int, help="Tokens from a window to the next.")
@click.option("--language", type=click.Choice(["en", "zh"]), help="Of answers, for their score.")
@click.option("--freeze", metavar="embeddings|encoder|N", help="What is not trained.")
@click.option("--patience", type=int, help="Epochs without a better score until the run ends.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="[default: float32]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--sweep", type=click.Choice(["classic"]), help="Run a grid of recipes.")
@click.option("--seeds", type=click.IntRange(1), default=1, help="Seeds of each.  [default: 1]")
@device_option
def finetune(task: str, train: str, output: str, device: str | None, **given: Any) -> None:
    """Fine-tune a model on the examples of a file."""
    from ..training.finetuning import FineTuning
    from ..training.finetuning import finetune as run
    from ..training.run import Stopped
    from ..training.sweep import sweep as run_sweep

    grid, seeds = given.pop("sweep"), given.pop("seeds")
    columns = replace(columns_of(given), mismatched=given.pop("mismatched"))
    freeze = given.pop("freeze")
    if freeze is not None:
        given["freeze"] = int(freeze) if freeze.isdigit() else freeze
    fields = {name: value for name, value in given.items() if value is not None}
    recipe = FineTuning(task=task, train=train, columns=columns, **fields)
    say = lambda line: click.echo(line, err=True)  # noqa: E731
    first = int(os.environ.get("RANK", 0)) == 0
    try:
        if grid is None and seeds == 1:
            run(recipe, output, device=device, say=say)
        else:
            report = run_sweep(recipe, output, grid, seeds, device=device, say=say)
            if first:
                click.echo(report)
    except Stopped as stopped:
        if first:
            click.echo(f"bertfast: {stopped}; the same command goes on there", err=True)
        sys.exit(128 + stopped.number)
