"""`bertfast info`: what this installation runs, and how big a model is."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import click
import torch

from .. import __version__, dispatch, extension
from .._table import table
from ..checkpoint.hub import resolve
from ..checkpoint.load import read_config
from ..core.batch import pack_rows
from ..core.encode import encode_packed
from ..core.heads import masked_lm_loss
from ..core.weights import example_weights
from ..dispatch import decisions
from ..errors import UnsupportedError
from ..ops import _graphs
from ..ops._loading import triton_cannot_run
from ..text.recipe import RECIPE_FILES, Recipe, read_recipe

DIRECTIONS = ("forward", "backward")


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
    """Print versions, the backends of every operation, what was measured, and a MODEL's parameters."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    lines = [table(_installation())]
    for device in devices:
        lines += ["", *_backends(device)]
        lines += [*_measured(device), recorded(device)] if device.type == "cuda" else []
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


def cuda_kernels() -> str:
    """The GPUs that the kernels were compiled for and by which CUDA, or why there are none."""
    if extension.cuda is None:
        return extension.CUDA_REASON
    targets, version = extension.cuda.targets(), extension.cuda.toolkit_version()
    names = ", ".join(f"sm_{target}" for target in targets.removesuffix("+PTX").split(","))
    rest = ", PTX for others" if targets.endswith("+PTX") else ""
    return f"{names}{rest}; CUDA {version // 1000}.{version % 1000 // 10}"


def gpus() -> Iterator[str]:
    """Whether the kernels cover this machine's driver and each of its GPUs; nothing where there are no kernels."""
    if extension.cuda is None:
        return
    if reason := extension.driver_refuses():
        yield reason
    elif not torch.cuda.is_available():
        yield "the driver serves the kernels; torch sees no GPU"
    else:
        for index in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(index)
            name = f"{torch.cuda.get_device_name(index)} (sm_{capability[0]}{capability[1]})"
            yield f"{name}: {extension.coverage(extension.cuda.targets(), capability)}"


def _installation() -> Iterator[tuple[str, str]]:
    found = extension.describe()
    for name, value in (
        ("bertfast", __version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("native code", native_code()),
        ("runs here", ", ".join(found["instruction_sets"])),
        ("cuda kernels", cuda_kernels()),
        *(("gpu", line) for line in gpus()),
        ("triton", triton_cannot_run() or decisions.version("triton")),
        ("backend", dispatch.backend()),
    ):
        if value:
            yield name, value


def _backends(device: torch.device) -> Iterator[str]:
    """The backend that each operation takes in float32 for a few tokens, and why not those before it."""
    notes: dict[str, int] = {}
    found, refused = _choices(device)
    rows = [(f"operation on {device}", *DIRECTIONS)]
    for operation in dispatch.operations():
        cells = [_cell(found.get((operation, d)), refused, notes) for d in DIRECTIONS]
        rows.append((operation, *cells))
    yield table(rows)
    for note, number in notes.items():
        yield f"[{number}] {note}"


def _choices(device: torch.device) -> tuple[dict[tuple[str, str], dispatch.Choice], str]:
    """What ran when a small model learnt from a batch, by operation and direction; why it stopped, if it did."""
    bert, head = example_weights(device)
    batch = pack_rows([[1, 2, 3], [4]], device)
    refused = ""
    with dispatch.record() as log, torch.enable_grad():
        try:
            labels = batch.input_ids
            table = bert.embeddings.word.requires_grad_()
            rows = encode_packed(bert, batch)
            torch.autograd.grad(masked_lm_loss(head, rows, labels), table)
        except UnsupportedError as error:
            refused = str(error).partition(". Take")[0]
    return {(choice.operation, choice.direction): choice for choice in log}, refused


def _cell(choice: dispatch.Choice | None, refused: str, notes: dict[str, int]) -> str:
    """The backend, with the numbers of the notes that say why those before it refused."""
    reasons = {} if choice is None else choice.reasons
    said = [f"{name}: {reason}" for name, reason in reasons.items()] or [refused] * (not choice)
    marks = [f"[{notes.setdefault(note, len(notes) + 1)}]" for note in said if note]
    return " ".join([(choice and choice.backend) or "none", *marks])


def _measured(device: torch.device) -> Iterator[str]:
    """Where the tuning table of a device is, how many kinds of calls it has, what won, what was rejected."""
    found = decisions.table(device)
    wins = Counter(decision.backend for decision in found.values())
    won = "".join(f", {name} {count}" for name, count in wins.most_common())
    path = decisions.path_of(device) or "no file: there is no home folder"
    yield f"tuning table: {len(found)} kinds of calls{won}; {path}"
    for key, decision in sorted(found.items()):
        for name, reason in decision.rejected.items():
            yield f"rejected: {name}, {key}: {reason}"


def recorded(device: torch.device) -> str:
    """Which calls on a GPU CUDA graphs are made of, how many there are now, and their memory."""
    found = [(calls, size) for where, calls, size in _graphs.describe() if where == device]
    calls, megabytes = sum(c for c, _ in found), sum(size for _, size in found) / 1e6
    most = dispatch.scope().graph_tokens
    kinds = f"of calls of at most {most:,} tokens, {_graphs.KEPT} at most" if most else "off"
    return f"cuda graphs: {kinds}; now {calls} in {len(found)} arenas, {megabytes:,.1f} MB"


def _model(path: str) -> Iterator[str]:
    config, recipe = _read(path)
    yield (
        f"{path}: {config['num_hidden_layers']} layers, hidden {config['hidden_size']}, "
        f"{config['num_attention_heads']} heads, vocabulary {config['vocab_size']}, "
        f"{config['max_position_embeddings']} positions"
    )
    if recipe is not None:
        scaled = ", length 1" if recipe.normalize else ""
        longest = f", texts of at most {recipe.max_length} tokens" if recipe.max_length else ""
        yield f"vectors: {recipe.pooling} pooling{scaled}{longest}"
    yield ""
    yield parameter_table(config)


def _read(path: str) -> tuple[dict[str, Any], Recipe | None]:
    """The configuration of a model, and its way of pooling where bertfast has it; no weights."""
    if os.path.isfile(path):
        return read_config(path), None
    folder = resolve(path, allow_patterns=RECIPE_FILES)
    try:
        recipe = read_recipe(folder)
    except UnsupportedError as error:
        click.echo(str(error), err=True)
        return read_config(folder), None
    return read_config(folder / recipe.transformer), recipe


def parameter_table(config: Mapping[str, Any]) -> str:
    """The parameters of the encoder by module, one layer standing for all, and their sum."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layers, norm, square = config["num_hidden_layers"], 2 * hidden, hidden * hidden + hidden
    parts = {
        "  attention.self": 3 * square,
        "  attention.output": square + norm,
        "  intermediate": inner * hidden + inner,
        "  output": hidden * inner + hidden + norm,
    }
    rows = {
        "embeddings.word_embeddings": config["vocab_size"] * hidden,
        "embeddings.position_embeddings": config["max_position_embeddings"] * hidden,
        "embeddings.token_type_embeddings": config["type_vocab_size"] * hidden,
        "embeddings.LayerNorm": norm,
    }
    total = sum(rows.values()) + layers * sum(parts.values()) + square
    if layers:
        rows |= {f"encoder.layer, each of {layers}": sum(parts.values()), **parts}
    lines = [(name, f"{count:,}", "") for name, count in {**rows, "pooler": square}.items()]
    return table(
        [*lines, ("total", f"{total:,}", f"{total * 4 / 1e6:,.1f} MB in float32")], right=(1,)
    )
