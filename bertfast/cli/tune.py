"""`bertfast tune`: measure the forms of every operation for a model ahead of its first use on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import click
import torch

from .. import dispatch
from ..dispatch import measured
from ..dispatch.keys import Key
from ..encoder import Encoder
from ..errors import ArgumentError
from ..model import BertModel
from ..packing import pack_lengths
from .encode import device_option, dtype_option


@click.command(
    epilog="""\b
Examples:
  bertfast tune MODEL
  bertfast tune MODEL --device cuda --dtype bfloat16 --training
  bertfast tune MODEL --tokens 64,4096 --length 32

MODEL is a directory with a checkpoint, or a model id on the Hugging Face hub.
What is measured is kept in a file in the cache folder (bertfast info says
where) and replaces what was there. Close other programs first.
"""
)
@click.argument("model")
@click.option(
    "--tokens", default="16,128,1024,4096", show_default=True, help="Real tokens of a batch."
)
@click.option("--length", type=click.IntRange(1), help="Tokens of a text.  [default: 128]")
@click.option("--training", is_flag=True, help="Also with dropout, and backward.")
@device_option
@dtype_option
def tune(
    model: str,
    tokens: str,
    length: int | None,
    training: bool,
    device: str | None,
    dtype: str | None,
) -> None:
    """Measure which form of each operation is the fastest for MODEL."""
    counts = _counts(tokens)
    encoder = Encoder.from_pretrained(model, device=device, dtype=dtype)
    length = min(length or 128, encoder.model.config.max_position_embeddings)
    with dispatch.use_backend("auto"), dispatch.tuning() as decisions:
        for count in counts:
            run(encoder.model, count, length, training)
    for line in report(decisions):
        click.echo(line)
    path = measured.table_of(encoder.model.device).path
    click.echo(f"\nkept in {path}" if path else "\nnot kept: there is no home folder")


def run(model: BertModel, tokens: int, length: int, training: bool) -> None:
    """One batch of texts of one length (the last may be shorter) through the model as an encoder runs it."""
    lengths = [length] * (tokens // length) + [tokens % length] * (tokens % length > 0)
    packed = pack_lengths(lengths, model.device)
    ids = torch.randint(
        0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0)
    ).to(model.device)

    def forward() -> torch.Tensor:
        return model(
            ids, cu_seq_lens_q=packed.cu_seqlens, max_length_q=packed.max_seqlen, return_dict=True
        ).last_hidden_state

    with torch.inference_mode():
        forward()
    if training:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            model.train()
            wanted = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(forward().float().sum(), wanted, allow_unused=True)
            model.eval()


def report(decisions: dict[Key, dispatch.Decision | None]) -> Iterator[str]:
    """A table of what was measured: the winner first in each line, then the others by their time."""
    yield f"{'operation':<22}{'direction':<10}{'tokens':>7}  {'sizes':<14}microseconds"
    for key, decision in sorted(decisions.items(), key=lambda item: (item[0].tokens, item[0][:2])):
        shapes = (
            key.features[-1:] if key.operation != "attention" else key.features[1:],
            key.sizes,
        )
        sizes = " ".join("x".join(map(str, shape)) for shape in shapes if shape)
        if decision is None:
            cells = "could not be measured"
        else:
            others = sorted(decision.seconds, key=lambda form: decision.seconds[form])
            others.remove(decision.form)
            names = [decision.form, *others]
            cells = ", ".join(f"{name} {decision.seconds[name] * 1e6:,.0f}" for name in names)
        yield f"{key.operation:<22}{key.direction:<10}{key.tokens:>7}  {sizes:<14}{cells}"
        for form, reason in (decision.struck_off if decision else {}).items():
            yield f"    struck off: {form}: {reason}"


def _counts(tokens: str) -> list[int]:
    try:
        counts = [int(word) for word in tokens.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ArgumentError("--tokens", "positive integers with commas between", repr(tokens))
    return counts
