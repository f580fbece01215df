"""`bertfast info`: what this installation runs, and how big a model is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import click
import torch

from .. import __version__, dispatch, extension, testing
from ..checkpoint.hub import resolve
from ..config import BertConfig
from ..data.pooling import RECIPE_FILES, Recipe, read_recipe
from ..errors import UnsupportedError
from ..model import BertModel


@click.command(
    epilog="""\b
Examples:
  bertfast info
  bertfast info sentence-transformers/all-MiniLM-L6-v2
  BERTFAST_BACKEND=reference bertfast info

MODEL is a directory with a config.json, or a model id on the Hugging Face hub.
"""
)
@click.argument("model", required=False)
def info(model: str | None) -> None:
    """Print versions, native code, the form of every operation, and a MODEL's parameters."""
    lines = [*_installation(), "", *_forms()]
    if model is not None:
        lines += ["", *_model(model)]
    click.echo("\n".join(lines))


def native_code() -> str:
    """The instruction set and the threads in use, or why there is no native code."""
    found = extension.describe()
    if not found["built"]:
        return found["reason"]
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}"
    return f"{found['active']}, {threads}"


def _installation() -> Iterator[str]:
    found = extension.describe()
    for name, value in (
        ("bertfast", __version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("native code", native_code()),
        ("runs here", ", ".join(found["instruction_sets"])),
        ("openmp", found["openmp"]),
        ("backend", dispatch.backend()),
    ):
        if value:
            yield f"{name:<12} {value}"


def _forms() -> Iterator[str]:
    """The form that computes each operation on this machine's CPU in float32, and why not others."""
    yield f"{'operation':<22} {'forward':<14} backward"
    notes: dict[str, int] = {}
    for operation in testing.OPERATIONS:
        cells = [_cell(operation, direction, notes) for direction in ("forward", "backward")]
        yield f"{operation:<22} {cells[0]:<14} {cells[1]}"
    for note, number in notes.items():
        yield f"[{number}] {note}"


def _cell(operation: str, direction: str, notes: dict[str, int]) -> str:
    """The form, with the numbers of the notes that say why forms before it refused."""
    case = testing.cases(operation)[0]
    reasons = dispatch.reasons(
        operation, direction, testing.arguments(operation, direction, case, torch.float32)
    )
    wanted = dispatch.backend()
    marks = []
    for form, reason in reasons.items():
        if wanted not in ("auto", form):
            continue
        if reason is None:
            return " ".join([form, *marks])
        marks.append(f"[{notes.setdefault(f'{form}: {reason}', len(notes) + 1)}]")
    return " ".join(["none", *marks])


def _model(path: str) -> Iterator[str]:
    config, recipe = _read(path)
    yield (
        f"{path}: {config.num_hidden_layers} layers, hidden {config.hidden_size}, "
        f"{config.num_attention_heads} heads, vocabulary {config.vocab_size}, "
        f"{config.max_position_embeddings} positions"
    )
    if recipe is not None:
        scaled = ", length 1" if recipe.normalize else ""
        longest = f", texts of at most {recipe.max_length} tokens" if recipe.max_length else ""
        yield f"vectors: {recipe.pooling} pooling{scaled}{longest}"
    yield ""
    yield from parameter_table(config)


def _read(path: str) -> tuple[BertConfig, Recipe | None]:
    """The configuration of a model, and its way of pooling where bertfast has it; no weights."""
    if os.path.isfile(path):
        return BertConfig.from_pretrained(path), None
    folder = resolve(path, allow_patterns=RECIPE_FILES)
    try:
        recipe = read_recipe(folder)
    except UnsupportedError as error:
        click.echo(str(error), err=True)
        return BertConfig.from_pretrained(folder), None
    return BertConfig.from_pretrained(folder / recipe.transformer), recipe


def parameter_table(config: BertConfig) -> Iterator[str]:
    """Lines: the parameters of the encoder by module, one layer standing for all, and their sum."""
    with torch.device("meta"):
        model = BertModel(config)
    layers = model.encoder.layer
    rows = [(f"embeddings.{name}", part) for name, part in model.embeddings.named_children()]
    if len(layers):
        rows.append((f"encoder.layer, each of {len(layers)}", layers[0]))
        rows += [
            ("  attention.self", layers[0].attention.self),
            ("  attention.output", layers[0].attention.output),
            ("  intermediate", layers[0].intermediate),
            ("  output", layers[0].output),
        ]
    rows.append(("pooler", model.pooler))
    for name, module in rows:
        if count := _count(module):
            yield f"{name:<36}{count:>14,}"
    total = _count(model)
    yield f"{'total':<36}{total:>14,}   {total * 4 / 1e6:,.1f} MB in float32"


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
