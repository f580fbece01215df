"""`bertfast fill-mask`: the words that a model puts in the place of [MASK]."""

from __future__ import annotations

import click

from .. import fill_mask as fill
from ..checkpoint.hub import resolve
from ..checkpoint.load import load_masked_lm
from ..text.tokenizer import Tokenizer
from .encode import device_option, dtype_option


@click.command(
    name="fill-mask",
    epilog="""\b
Examples:
  bertfast fill-mask MODEL "my dog is [MASK]."
  bertfast fill-mask MODEL "[MASK] is a [MASK]." "明月几[MASK]有" --top-k 3

MODEL is a directory with a checkpoint, or a model id on the Hugging Face
hub.
""",
)
@click.argument("model")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option(
    "--top-k", type=click.IntRange(1), default=5, show_default=True, help="Words for each [MASK]."
)
@device_option
@dtype_option
def fill_mask(
    model: str, texts: tuple[str, ...], top_k: int, device: str | None, dtype: str | None
) -> None:
    """Print the most probable words for every [MASK] of each TEXT."""
    folder = resolve(model)
    weights = load_masked_lm(folder, dtype, device)
    filled = fill(weights, Tokenizer.from_folder(folder), texts, top_k)
    for text, masks in zip(texts, filled, strict=True):
        click.echo(text)
        for number, candidates in enumerate(masks, 1):
            if len(masks) > 1:
                click.echo(f"  [MASK] {number}")
            for token, _, score in candidates:
                click.echo(f"  {score:.3f}  {token}")
