"""`bertfast encode`: texts of a file to vectors in a file, however big both are."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import numpy as np
import torch

from ..errors import ArgumentError, BertfastError, InputFileError
from ..inference.devices import default_device
from ..inference.encoder import BATCH_TOKENS, Encoder
from ..text.pooling import POOLINGS
from ..text.readers import READERS, Texts, reading
from . import files


def check_device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A device that torch can use here: the one that is asked for, or the best."""
    try:
        return str(torch.empty(0, device=value or default_device()).device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise click.BadParameter(str(error).partition("\n")[0]) from error


device_option = click.option(
    "--device",
    callback=check_device,
    help="Where the model runs.  [default: a CUDA GPU if a backend serves one, else cpu]",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    help="What the model computes in.  [default: the checkpoint's]",
)


@click.command(
    epilog="""\b
Examples:
  bertfast encode MODEL sentences.txt -o vectors.npy
  bertfast encode MODEL reviews.csv --field body -o reviews.parquet
  bertfast encode MODEL pages.jsonl --field title --max-length 64 -o t.npy
  zcat big.txt.gz | bertfast encode MODEL - | gzip > vectors.jsonl.gz

MODEL is a directory with a checkpoint, or a model id on the Hugging Face hub. Row i of the
output belongs to text i; parquet and jsonl hold the text too. An output file appears when it is
whole, and not at all when something fails.
"""
)
@click.argument("model")
@click.argument("input", metavar="INPUT")
@click.option("-o", "--output", default="-", show_default=True, help="File to write; - is a pipe.")
@click.option(
    "--input-format",
    type=click.Choice(list(READERS)),
    help="Of INPUT.  [default: by its name; txt, a text a line, for a pipe]",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(list(files.WRITERS)),
    help="Of the output.  [default: by its name; jsonl for a pipe]",
)
@click.option(
    "--field", default="text", show_default=True, help="Where jsonl, csv, parquet have the text."
)
@click.option("--pooling", type=click.Choice(POOLINGS), help="[default: the checkpoint's, or mean]")
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Scale vectors to length 1.  [default: as the checkpoint says]",
)
@click.option("--max-length", type=int, help="Most tokens of a text.  [default: the checkpoint's]")
@click.option("--prompt", help="Put before every text.  [default: the checkpoint's, if any]")
@click.option("--prompt-name", help="Or the name of one of the checkpoint's prompts.")
@click.option(
    "--truncate-dim",
    type=int,
    help="Numbers of a vector.  [default: as the checkpoint says, or all]",
)
@click.option(
    "--batch-tokens", type=int, default=BATCH_TOKENS, show_default=True, help="Tokens at a time."
)
@device_option
@dtype_option
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Keep the model's weights in int8, on a CPU.  [default: as the checkpoint has them]",
)
@click.option(
    "--progress/--no-progress", default=None, help="Show a bar.  [default: on a terminal]"
)
def encode(
    model: str,
    input: str,
    output: str,
    input_format: str | None,
    output_format: str | None,
    field: str,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
    **options: Any,
) -> None:
    """Turn the texts of INPUT into vectors.

    INPUT is a .txt (a text a line), .jsonl, .csv or .parquet file, or - for standard input. The
    output is a .npy (float32 [texts, dimension]), .parquet or .jsonl file, or standard output.
    """
    # Everything that may be wrong about the files is met before the model is loaded.
    with (
        _removed_on_signals(),
        reading(input, input_format, field) as texts,
        files.output(output, output_format) as target,
    ):
        encoder = Encoder.from_pretrained(model, device=device, dtype=dtype, quantize=quantize)
        start = time.perf_counter()
        count, dimension = encode_to(encoder, texts, target, **options)
        seconds = time.perf_counter() - start
    name = "standard output" if output == "-" else output
    said = f"{name}: {count} vectors of {dimension} in {seconds:.1f} s"
    rate = f"{count / max(seconds, 1e-9):.0f} texts/s on {encoder.device}"
    click.echo(f"{said} ({rate})", err=True)


def encode_to(
    encoder: Encoder,
    texts: Texts,
    target: files.Target,
    truncate_dim: int | None = None,
    **options: Any,
) -> tuple[int, int]:
    """Encode texts as they come and write them; the options are those of `Encoder.encode`.

    Returns:
        how many texts there were, and the length of a vector.

    Raises:
        InputFileError: a text that the encoder refuses, with its line.
        BertfastError: a vector is not finite.
    """
    count = 0
    blocks = encoder.encode_iter(texts, truncate_dim=truncate_dim, **options)
    dimension = min(encoder.weights.hidden_size, truncate_dim or encoder.dimension)
    with target.writer(dimension) as write:
        for window, vectors in _with_lines(blocks, texts):
            finite = np.isfinite(vectors).all(1)
            if not finite.all():
                raise BertfastError(
                    f"text {count + int(finite.argmin()) + 1}: the model gave a vector that is not "
                    "finite. Its weights may hold NaN; with float16, try --dtype float32."
                )
            write(window, vectors)
            count += len(window)
    return count, dimension


def _with_lines(blocks: Iterator[Any], texts: Texts) -> Iterator[Any]:
    """The blocks, with errors that name a text by its index told by its line."""
    try:
        yield from blocks
    except ArgumentError as error:
        index = re.fullmatch(r"texts\[(\d+)\]", error.name)
        if index is None:
            raise
        place = texts.place(int(index[1]))
        raise InputFileError(str(error).replace(error.name, place, 1)) from error


@contextmanager
def _removed_on_signals() -> Iterator[None]:
    """Let a signal that ends the command do so the orderly way, which removes unfinished files; one that is ignored, as
    under nohup, stays so."""

    def leave(number: int, frame: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one would cut the removing short
        sys.exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        before = {n: handler for n, handler in found.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
