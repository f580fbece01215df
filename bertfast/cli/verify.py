"""`bertfast verify`: parity and timing of every form on the user's own checkpoint.

Truth is the reference form of the whole model in float64. A form may err twice as much as plain torch does in the
model's dtype, and some roundings: in its largest error on hidden states, in its RMS error on each gradient. The truth
itself is compared with transformers in float64, where that is installed.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from .. import dispatch
from ..checkpoint.hub import resolve
from ..data.pooling import read_recipe
from ..encoder import Encoder
from ..errors import ArgumentError, UnsupportedError
from ..model import BertModel
from ..packing import pack_lengths
from . import Failure, files
from .encode import device_option, dtype_option

TEXTS = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in "
    "my purse, and nothing particular to interest me on shore, I thought I would sail about a "
    "little and see the watery part of the world.",
    "The forest keeps the river cool.",
    "A",
    "道可道，非常道。名可名，非常名。",
    "It is a way I have of driving off the spleen and regulating the circulation. " * 8,
    "What is the capital of France?",
)
WAYS = 2.0  # times plain torch's largest error
ROUNDINGS = 8.0  # of the largest value
TRUTH = 1e-9  # relative difference of two float64 models


class Batch(NamedTuple):
    """Rows of token ids, and the same packed: ids [1,T], cu_seqlens [B+1]."""

    rows: list[list[int]]
    ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


class Result(NamedTuple):
    """Hidden states [T,H], and gradients by parameter."""

    hidden: Tensor
    gradients: dict[str, Tensor]


class Row(NamedTuple):
    """A line of the table; errors relative to what is allowed."""

    form: str
    hidden: float
    gradients: float
    forward_s: float
    both_s: float

    @property
    def passes(self) -> bool:
        return self.hidden <= 1 and self.gradients <= 1


@click.command(
    epilog="""\b
Examples:
  bertfast verify DIR
  bertfast verify DIR --device cuda --dtype bfloat16
  bertfast verify DIR --text sentences.txt --rounds 9

DIR is a directory with a checkpoint, or a model id on the Hugging Face hub.
The exit code is 1 where a form errs more than it may, or raises.
"""
)
@click.argument("model", metavar="DIR")
@click.option("--text", help="A file with a text a line.  [default: some sentences]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of timing.")
@device_option
@dtype_option
def verify(
    model: str, text: str | None, rounds: int, device: str | None, dtype: str | None
) -> None:
    """Compare every form with float64 on the model in DIR, and time them."""
    texts = _texts(text)
    encoder = Encoder.from_pretrained(model, device=device, dtype=dtype)
    batch = make_batch(encoder, texts)
    tokens = batch.ids.shape[1]
    click.echo(
        f"{len(texts)} texts, {tokens} tokens, {encoder.model.dtype}, {encoder.model.device}"
    )
    wide = copy.deepcopy(encoder.model).double()
    with dispatch.use_backend("reference"):
        truth = run(wide, batch)
    yardstick = _plain_torch(encoder.model, batch)
    click.echo(f"{'form':<16}{'hidden':>9}{'gradients':>11}{'forward':>12}{'+ backward':>12}")
    wrong = []
    for form in ("auto", *dispatch.NAMES):
        try:
            with dispatch.use_backend(form):
                row = _row(form, encoder.model, batch, truth, yardstick, rounds)
        except UnsupportedError as error:
            click.echo(f"{form:<16} {str(error).partition('. Take')[0]}")
        except Exception as error:
            # As a kernel that does not compile here: the other forms are checked all the same.
            reason = str(error).partition("\n")[0]
            click.echo(f"{form:<16} RAISED {type(error).__name__}: {reason}")
            wrong.append(form)
        else:
            click.echo(_line(row))
            wrong += [form] * (not row.passes)
    if not _transformers(model, encoder, batch, truth, rounds):
        wrong.append("transformers")
    click.echo("Errors as shares of what is allowed: twice plain torch's own, against float64.")
    if wrong:
        raise Failure(f"above tolerance or raised: {', '.join(wrong)}", 1)


def make_batch(encoder: Encoder, texts: Sequence[str]) -> Batch:
    """The texts as the encoder's tokenizer cuts them."""
    rows, _ = encoder.tokenizer(texts, encoder.max_length)
    rows = [row for row in rows if row]
    if not rows:
        raise ArgumentError("--text", "a text with tokens", "none")
    device = encoder.model.device
    packed = pack_lengths([len(row) for row in rows], device)
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    return Batch(rows, ids, packed.cu_seqlens, packed.max_seqlen)


def hidden_of(model: BertModel, batch: Batch) -> Tensor:
    """The last hidden states [T,H]."""
    output = model(
        batch.ids,
        cu_seq_lens_q=batch.cu_seqlens,
        max_length_q=batch.max_seqlen,
        output_hidden_states=False,
        output_attentions=False,
        return_dict=True,
    )
    return output.last_hidden_state[0]


def run(model: BertModel, batch: Batch) -> Result:
    """Hidden states, and the gradients of their product with a fixed random direction."""
    with torch.enable_grad():
        hidden = hidden_of(model, batch)
        direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        loss = (hidden * direction.to(hidden)).sum()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named, found, strict=True)
    return Result(hidden.detach(), {name: g for name, g in pairs if g is not None})


def hidden_share(found: Tensor, truth: Result, yardstick: Result) -> float:
    """The largest error of the hidden states, relative to what is allowed."""
    largest = [(states.double() - truth.hidden).abs().max() for states in (found, yardstick.hidden)]
    return _share(*largest, truth.hidden.abs().max(), found.dtype)


def gradient_share(found: Result, truth: Result, yardstick: Result) -> float:
    """The largest RMS error of a parameter's gradient, relative to what is allowed.

    RMS: after a whole model the largest of a million rounding errors is as much luck as size. A gradient may be 0 by
    calculus (a key's bias): then a rounding is one of a typical gradient.
    """
    typical = _rms(torch.cat([gradient.flatten() for gradient in truth.gradients.values()]))
    shares = []
    for name, true in truth.gradients.items():
        pair = (found.gradients[name], yardstick.gradients[name])
        errors = [_rms(gradient.double() - true) for gradient in pair]
        shares.append(_share(*errors, torch.maximum(_rms(true), typical), found.hidden.dtype))
    return max(shares)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _share(error: Tensor, plain: Tensor, size: Tensor, dtype: torch.dtype) -> float:
    allowed = float(WAYS * plain + ROUNDINGS * torch.finfo(dtype).eps * size)
    error = float(error)
    if not error <= allowed:  # nan compares with nothing
        return error / allowed if error > allowed > 0 else float("inf")
    return error / allowed if allowed else 0.0


def _plain_torch(model: BertModel, batch: Batch) -> Result:
    """In the model's dtype: the form torch, or the reference where that is the same."""
    try:
        with dispatch.use_backend("torch"):
            return run(model, batch)
    except UnsupportedError:
        with dispatch.use_backend("reference"):
            return run(model, batch)


def _row(
    form: str, model: BertModel, batch: Batch, truth: Result, yardstick: Result, rounds: int
) -> Row:
    found = run(model, batch)
    hidden = hidden_share(found.hidden, truth, yardstick)
    gradients = gradient_share(found, truth, yardstick)
    with torch.inference_mode():  # the forms save nothing then, and may take another way
        hidden = max(hidden, hidden_share(hidden_of(model, batch), truth, yardstick))
        forward_s = seconds(lambda: hidden_of(model, batch), model.device, rounds)
    both_s = seconds(lambda: run(model, batch), model.device, rounds)
    return Row(form, hidden, gradients, forward_s, both_s)


def _line(row: Row) -> str:
    times = f"{row.forward_s * 1e3:>9.1f} ms{row.both_s * 1e3:>9.1f} ms"
    verdict = "" if row.passes else "   ABOVE TOLERANCE"
    return f"{row.form:<16}{row.hidden:>9.2f}{row.gradients:>11.2f}{times}{verdict}"


def seconds(function: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """The median time of some calls, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _transformers(path: str, encoder: Encoder, batch: Batch, truth: Result, rounds: int) -> bool:
    """Whether transformers' model in float64 gives the truth; its time in the model's dtype is printed."""
    if importlib.util.find_spec("transformers") is None:
        click.echo(f"{'transformers':<16} not installed: the truth was not compared with it")
        return True
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = resolve(path)
    folder = Path(folder) / read_recipe(folder).transformer
    peer = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    device = batch.ids.device
    longest = max(map(len, batch.rows))
    padded = [row + [0] * (longest - len(row)) for row in batch.rows]
    real = [[1] * len(row) + [0] * (longest - len(row)) for row in batch.rows]
    inputs = {
        "input_ids": torch.tensor(padded, device=device),
        "attention_mask": torch.tensor(real, device=device),
    }
    with torch.inference_mode():
        peer.to(device, encoder.model.dtype).to(torch.float64)  # the same rounded weights
        states = peer(**inputs).last_hidden_state
        states = states[inputs["attention_mask"].bool()]
        difference = float((states - truth.hidden).abs().max() / truth.hidden.abs().max())
        peer.to(encoder.model.dtype)
        forward_s = seconds(lambda: peer(**inputs), device, rounds)
    verdict = "" if difference <= TRUTH else "   ABOVE TOLERANCE"
    click.echo(
        f"{'transformers':<16} differs from the truth by {difference:.0e} in float64; "
        f"forward {forward_s * 1e3:.1f} ms{verdict}"
    )
    return difference <= TRUTH


def _texts(path: str | None) -> list[str]:
    if path is None:
        return list(TEXTS)
    with files.reading(path, "txt") as lines:
        return list(lines)
