"""`bertfast explain`: which form every operation takes for a text."""

from __future__ import annotations

import click
import torch

from .. import explain as explain_batch
from ..encoder import Encoder
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
    """Encode TEXTs and print the form of every operation, and why the others refused."""
    encoder = Encoder.from_pretrained(model, device=device, dtype=dtype)
    rows, _ = encoder.tokenizer(texts, encoder.max_length)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor(
        [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
    )
    with torch.inference_mode():
        click.echo(explain_batch(encoder.model, {"input_ids": ids, "attention_mask": mask}))
