"""`bertfast verify`: ours beside transformers' on the user's own checkpoint and texts.

Exact is what transformers' model gives in float64. Ours may err twice as much as transformers' does in the model's
dtype, and some roundings: in its largest error on hidden states, in its RMS error on each gradient.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .. import dispatch
from .._table import table
from ..checkpoint.hub import require, resolve
from ..checkpoint.load import read_config
from ..errors import ArgumentError, UnsupportedError
from ..text.readers import reading
from ..text.recipe import read_recipe
from ..text.tokenizer import Tokenizer
from . import Failure
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
WAYS = 2.0  # times transformers' largest error
ROUNDINGS = 8.0  # of the largest value

Inputs = dict[str, Tensor]


class Result(NamedTuple):
    """Hidden states at real tokens [T,H] of the embeddings and every layer, and gradients by parameter."""

    states: list[Tensor]
    gradients: dict[str, Tensor]


@click.command(
    epilog="""\b
Examples:
  bertfast verify MODEL
  bertfast verify MODEL --texts sentences.txt --train
  bertfast verify MODEL --device cuda --dtype bfloat16 --rounds 9

MODEL is a directory with a checkpoint, or a model id on the Hugging Face hub.
The exit code is 1 where a backend errs more than it may, or raises.
"""
)
@click.argument("model", metavar="MODEL")
@click.option("--texts", help="A file with a text a line.  [default: some sentences]")
@click.option("--train", is_flag=True, help="Compare gradients too, and time backward.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of timing.")
@device_option
@dtype_option
def verify(
    model: str, texts: str | None, train: bool, rounds: int, device: str | None, dtype: str | None
) -> None:
    """Compare bertfast with transformers on MODEL: error by layer, gradients, speed."""
    require("transformers", "bertfast verify")
    folder = resolve(model)
    folder = Path(folder) / read_recipe(folder).transformer
    inputs = make_inputs(folder, _texts(texts), device)
    theirs = _load(folder, device, dtype)
    kind, tokens = next(theirs.parameters()).dtype, int(inputs["attention_mask"].sum())
    click.echo(f"{len(inputs['input_ids'])} texts, {tokens} tokens, {kind}, {theirs.device}\n")
    exact = run(copy.deepcopy(theirs).double(), inputs, train)
    plain = run(theirs, inputs, train)
    ours = _ours(theirs)
    click.echo(by_layer(ours, inputs, exact, plain))
    heads = ("backend", "hidden", *(["gradients"] * train), "forward", *(["+ backward"] * train))
    rows, wrong = [(*heads, "")], []
    for name in ("auto", *dispatch.NAMES):
        cells, remark, right = _row(name, ours, inputs, exact, plain, train, rounds)
        rows.append((name, *(cells or [""] * (len(heads) - 1)), remark))
        wrong += [] if right else [name]
    peers = _times(theirs, inputs, train, rounds)
    rows.append(("transformers", *[""] * (1 + train), *peers, ""))
    click.echo("\n" + table(rows, right=range(1, len(heads))))
    click.echo(
        "Errors as shares of what is allowed: twice transformers' own, against float64. "
        "Times are of the forward" + ", and of forward and backward." * train + "." * (not train)
    )
    if wrong:
        raise Failure(f"above tolerance or raised: {', '.join(wrong)}", 1)


def make_inputs(folder: Path, texts: Sequence[str], device: str | None) -> Inputs:
    """The texts as the checkpoint's tokenizer cuts them, padded to the longest."""
    tokenizer = Tokenizer.from_folder(folder)
    limit = read_config(folder)["max_position_embeddings"]
    rows, _ = tokenizer(texts, min(limit, tokenizer.max_length or limit))
    if not any(rows):
        raise ArgumentError("--texts", "a text with tokens", "none")
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    parts = {"input_ids": ids, "attention_mask": [torch.ones_like(row) for row in ids]}
    return {name: pad_sequence(rows, True).to(device or "cpu") for name, rows in parts.items()}


def run(model: nn.Module, inputs: Inputs, train: bool) -> Result:
    """Hidden states; with `train` also the gradients of the last ones' product with a fixed random direction."""
    real = inputs["attention_mask"].bool()
    with torch.enable_grad() if train else torch.no_grad():
        states = [h[real] for h in model(**inputs, output_hidden_states=True).hidden_states]
        gradients = {}
        if train:
            last, generator = states[-1], torch.Generator().manual_seed(0)
            direction = torch.randn(last.shape, generator=generator).to(last)
            named = {name: p for name, p in model.named_parameters() if p.requires_grad}
            loss = (last * direction).sum()
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            pairs = zip(named, found, strict=True)
            gradients = {name: gradient for name, gradient in pairs if gradient is not None}
    return Result([state.detach() for state in states], gradients)


def by_layer(model: nn.Module, inputs: Inputs, exact: Result, theirs: Result) -> str:
    """The largest errors of the hidden states, layer by layer."""
    try:
        ours = run(model, inputs, False)
    except Exception:  # the table of the backends tells which one it is
        return ""
    rows = [("largest error after", "transformers", "bertfast")]
    for index, states in enumerate(zip(exact.states, theirs.states, ours.states, strict=True)):
        name = f"encoder.layer.{index - 1}" if index else "embeddings"
        errors = [float((found.double() - states[0]).abs().max()) for found in states[1:]]
        rows.append((name, *(f"{error:.1e}" for error in errors)))
    return table(rows, right=(1, 2))


def hidden_share(found: Result, exact: Result, plain: Result) -> float:
    """The largest error of the last hidden states, relative to what is allowed."""
    true, last = exact.states[-1], found.states[-1]
    errors = [(states.double() - true).abs().max() for states in (last, plain.states[-1])]
    return _share(*errors, true.abs().max(), last.dtype)


def gradient_share(found: Result, exact: Result, plain: Result) -> float:
    """The largest RMS error of a parameter's gradient, relative to what is allowed.

    RMS: after a whole model the largest of a million rounding errors is as much luck as size. A gradient may be 0 by
    calculus (a key's bias): then a rounding is one of a typical gradient.
    """
    typical = _rms(torch.cat([gradient.flatten() for gradient in exact.gradients.values()]))
    shares = []
    for name, true in exact.gradients.items():
        pair = (found.gradients[name], plain.gradients[name])
        errors = [_rms(gradient.double() - true) for gradient in pair]
        size = torch.maximum(_rms(true), typical)
        shares.append(_share(*errors, size, found.states[-1].dtype))
    return max(shares)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _share(error: Tensor, plain: Tensor, size: Tensor, dtype: torch.dtype) -> float:
    allowed = float(WAYS * plain + ROUNDINGS * torch.finfo(dtype).eps * size)
    error = float(error)
    if not error <= allowed:  # nan compares with nothing
        return error / allowed if error > allowed > 0 else float("inf")
    return error / allowed if allowed else 0.0


def _row(
    name: str, model: nn.Module, inputs: Inputs, exact: Result, plain: Result, train: bool, rounds: int
) -> tuple[list[str], str, bool]:  # fmt: skip
    """A backend's errors and times, a remark, and whether it is right or refuses with a reason."""
    try:
        with dispatch.use_backend(name):
            found = run(model, inputs, train)
            shares = [hidden_share(found, exact, plain)]
            if train:
                shares.append(gradient_share(found, exact, plain))
            times = _times(model, inputs, train, rounds)
    except UnsupportedError as error:
        return [], str(error).partition(". Take")[0], True
    except Exception as error:  # a kernel may not compile here: the others are checked all the same
        return [], f"RAISED {type(error).__name__}: {str(error).partition(chr(10))[0]}", False
    right = max(shares) <= 1
    cells = [*(f"{share:.2f}" for share in shares), *times]
    return cells, "" if right else "ABOVE TOLERANCE", right


def _times(model: nn.Module, inputs: Inputs, train: bool, rounds: int) -> list[str]:
    device = inputs["input_ids"].device
    with torch.inference_mode():
        times = [_seconds(lambda: model(**inputs), device, rounds)]
    if train:
        times.append(_seconds(lambda: run(model, inputs, True), device, rounds))
    return [f"{seconds * 1e3:.1f} ms" for seconds in times]


def _seconds(function: Callable[[], Any], device: torch.device, rounds: int) -> float:
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


def _load(folder: Path, device: str | None, dtype: str | None) -> nn.Module:
    """transformers' model, without pooler, in eval mode."""
    import transformers

    from ..checkpoint.reading import check_files

    check_files(folder)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    return model.to(device or "cpu", getattr(torch, dtype) if dtype else model.dtype).eval()


def _ours(theirs: nn.Module) -> nn.Module:
    """A copy of transformers' model, switched to bertfast's class."""
    from ..models.optimize import optimize

    model = copy.deepcopy(theirs)
    optimize(model)
    return model


def _texts(path: str | None) -> list[str]:
    if path is None:
        return list(TEXTS)
    with reading(path, "txt") as lines:
        return list(lines)
