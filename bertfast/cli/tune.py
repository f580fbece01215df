"""`bertfast tune`: measure the forms of every operation for a model ahead of its first use on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import torch

from .. import dispatch
from ..core.batch import pack_rows
from ..core.encode import encode_packed
from ..core.weights import BertWeights, EmbeddingWeights, LayerWeights, Linear, Norm
from ..dispatch import measured
from ..dispatch.keys import Key
from ..errors import ArgumentError
from ..inference.encoder import Encoder
from ..ops.packed import Cache
from .encode import device_option, dtype_option

DROPOUT = 0.1  # in training, as BERT's


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
    weights = encoder.weights
    length = min(length or 128, weights.max_positions)
    vocabulary = len(weights.embeddings.word)
    with dispatch.use_backend("auto"), dispatch.tuning() as decisions:
        for count in counts:
            run(weights, vocabulary, count, length, training)
    for line in report(decisions):
        click.echo(line)
    path = measured.table_of(weights.device).path
    click.echo(f"\nkept in {path}" if path else "\nnot kept: there is no home folder")


def run(weights: BertWeights, vocabulary: int, tokens: int, length: int, training: bool) -> None:
    """One batch of texts of one length (the last may be shorter) through the encoder."""
    lengths = [length] * (tokens // length) + [tokens % length] * (tokens % length > 0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator).split(lengths)
    batch = pack_rows([row.tolist() for row in ids], weights.device)
    with torch.inference_mode(), Cache().active():  # as Encoder keeps its weights
        encode_packed(weights, batch)
    if training:
        devices = [weights.device] if weights.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            learning, wanted = _learning(weights)
            states = encode_packed(learning, batch)
            torch.autograd.grad(states.float().sum(), wanted, allow_unused=True)


def _learning(weights: BertWeights) -> tuple[BertWeights, list[torch.Tensor]]:
    """The weights as they are in training: with dropout, each tensor (of all that are given too) wanting a gradient."""
    wanted: list[torch.Tensor] = []

    def live(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            wanted.append(part.detach().requires_grad_())
            return wanted[-1]
        return type(part)(*map(live, part)) if isinstance(part, Linear | Norm) else part

    def layer(weights: LayerWeights) -> LayerWeights:
        live_layer = LayerWeights(*map(live, weights))
        return live_layer._replace(attention_dropout=DROPOUT, out_dropout=DROPOUT, dropout=DROPOUT)

    embeddings = EmbeddingWeights(*map(live, weights.embeddings))._replace(dropout=DROPOUT)
    layers = [layer(weights) for weights in weights.layers]
    return BertWeights(embeddings, layers, None, True), wanted


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
