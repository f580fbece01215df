"""`bertfast explain`: which backend every operation takes for a text."""

from __future__ import annotations

import click

from .. import dispatch
from ..explain import report
from ..inference.encoder import Encoder
from .encode import device_option, dtype_option


@click.command(
    epilog="""\b
Examples:
  bertfast explain MODEL "Call me Ishmael."
  bertfast explain MODEL "one text" "and another" --dtype bfloat16

MODEL is a directory with a checkpoint, or a model id on the Hugging Face hub.
"""
)
@click.argument("model")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@device_option
@dtype_option
def explain(model: str, texts: tuple[str, ...], device: str | None, dtype: str | None) -> None:
    """Encode TEXTs and print the backend of every operation, and why the others did not run."""
    encoder = Encoder.from_pretrained(model, device=device, dtype=dtype)
    with dispatch.record() as log:
        encoder.encode(texts, progress=False)
    click.echo(report(log))
