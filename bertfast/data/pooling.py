"""From token states to one vector a text, as sentence-transformers' configuration files ask for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._files import read_json
from ..errors import ArgumentError, CheckpointError, UnsupportedError

POOLINGS = ("cls", "mean", "max")
RECIPE_FILES = (  # all that `read_recipe` reads
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "[0-9]_*/sentence_bert_config.json",
)
_FLAGS = {  # sentence-transformers before version 6 keeps a flag for each mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ADVICE = (
    "Use sentence-transformers with bertfast's engine: "
    "model = SentenceTransformer(path); bertfast.optimize(model)."
)


class Recipe(NamedTuple):
    """How a checkpoint turns texts into vectors.

    Fields:
        transformer: the subfolder of the BERT checkpoint, "" for the folder itself.
        pooling: one of `POOLINGS`.
        normalize: whether vectors are scaled to length 1.
        max_length: the most tokens of a text, where sentence_bert_config.json says so.
        lower_case: lowercase texts before the tokenizer sees them.
        prompt: what is put before every text.
    """

    transformer: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""


def read_recipe(folder: str | Path) -> Recipe:
    """Read sentence-transformers' files in a checkpoint directory; without them: mean pooling.

    Raises:
        CheckpointError: a file is missing or corrupt, or names a path outside the directory.
        UnsupportedError: a module or a pooling mode that bertfast does not compute.
    """
    folder = Path(folder)
    if not (folder / "modules.json").is_file():
        return Recipe()
    transformer, pooling, with_prompt, normalize = None, None, True, False
    for kind, path in _modules(folder / "modules.json"):
        if kind == "Transformer" and transformer is None:
            transformer = path
        elif kind == "Pooling" and pooling is None:
            pooling, with_prompt = _pooling(folder / path / "config.json")
        elif kind == "Normalize":
            normalize = True
        else:
            raise UnsupportedError(
                f"{folder / 'modules.json'}: the module {kind} is not supported. {_ADVICE}"
            )
    if transformer is None or pooling is None:
        raise CheckpointError(f"{folder / 'modules.json'}: expected a Transformer and a Pooling.")
    prompt = _prompt(folder / "config_sentence_transformers.json")
    if prompt and not with_prompt:
        raise UnsupportedError(
            f"{folder}: pooling that leaves out the prompt is not supported. {_ADVICE}"
        )
    path = folder / transformer / "sentence_bert_config.json"
    text = _optional(path)
    lower_case = bool(text.get("do_lower_case", False))
    return Recipe(transformer, pooling, normalize, _max_length(path, text), lower_case, prompt)


def pool(x: Tensor, lengths: Sequence[int], pooling: str, normalize: bool = False) -> Tensor:
    """One vector a sequence from packed token states, with no padded copy of them.

    Each vector is computed from its own rows in their order, so it does not depend on the batch.

    Args:
        x: [T,H] token states of the sequences, one after the other.
        lengths: the length of each sequence, on the host; they sum to T.
        pooling: "cls" (first row), "mean" or "max" (over the rows).
        normalize: scale each vector to length 1.

    Returns:
        [B,H] float32 (float64 for float64), sums in the same; zeros for a sequence of length 0.

    Raises:
        ArgumentError: pooling is none of `POOLINGS`.
    """
    check_pooling(pooling)
    x = x if x.dtype == torch.float64 else x.float()
    sizes = torch.tensor(lengths, dtype=torch.int64)
    if pooling == "cls":
        starts = (sizes.cumsum(0) - sizes).clamp(max=max(x.shape[0] - 1, 0))
        vectors = (
            x.index_select(0, starts.to(x.device))
            if x.shape[0]
            else x.new_zeros(len(sizes), x.shape[1])
        )
    else:
        vectors = torch.segment_reduce(x, pooling, lengths=sizes.to(x.device), axis=0, unsafe=True)
    empty = [i for i, length in enumerate(lengths) if length == 0]
    if empty:
        vectors[empty] = 0
    return F.normalize(vectors, dim=1) if normalize else vectors


def check_pooling(pooling: Any) -> None:
    if pooling not in POOLINGS:
        raise ArgumentError("pooling", "one of " + ", ".join(POOLINGS), repr(pooling))


def _modules(path: Path) -> list[tuple[str, str]]:
    """(last part of the type, path) of each module, in order."""
    try:
        modules = json.loads(path.read_bytes().decode("utf-8"))
        entries = sorted(modules, key=lambda module: module["idx"])
        found = [(module["type"].rpartition(".")[2], module["path"]) for module in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a list of modules with idx, type and path ({error!r})."
        ) from error
    for _, place in found:
        if not isinstance(place, str) or Path(place).is_absolute() or ".." in Path(place).parts:
            raise CheckpointError(f"{path}: expected paths inside the checkpoint, got {place!r}.")
    return found


def _pooling(path: Path) -> tuple[str, bool]:
    """The mode, and whether the tokens of a prompt take part."""
    config = read_json(path, CheckpointError)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UnsupportedError(
            f"{path}: pooling by {' + '.join(map(str, modes))} is not supported, "
            f"only by {', '.join(POOLINGS)}. {_ADVICE}"
        )
    return modes[0], bool(config.get("include_prompt", True))


def _max_length(path: Path, config: dict[str, Any]) -> int | None:
    longest = config.get("max_seq_length")
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise CheckpointError(f"{path}: max_seq_length: expected a length, got {longest!r}.")
    return longest


def _prompt(path: Path) -> str:
    """The prompt that sentence-transformers puts before a text when it is told nothing else."""
    config = _optional(path)
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise CheckpointError(f"{path}: default_prompt_name is {name!r}, which is no prompt there.")
    return prompts[name]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, CheckpointError) if path.is_file() else {}
