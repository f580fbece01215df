"""How a checkpoint turns texts into vectors: sentence-transformers' configuration files, obeyed or refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .._files import read_json
from ..errors import CheckpointError, UnsupportedError
from .pooling import POOLINGS

RECIPE_FILES = (  # all that `read_recipe` reads
    "config.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "[0-9]_*/sentence_*_config.json",
)
ADVICE = (
    "Use sentence-transformers with bertfast's engine: "
    "model = SentenceTransformer(path); bertfast.optimize(model)."
)
PROMPTS = MappingProxyType({"query": "", "document": ""})  # names that every checkpoint has
_FLAGS = {  # sentence-transformers before version 6 keeps a flag for each mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Keys of each file that are obeyed, or say nothing of the vectors; and values of others that ask for nothing special.
_POOLING = ("pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension")
_OF_ALL = ("prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name")
_ABOUT_IT = ("__version__", "requirements")
_TEXT = ("max_seq_length", "do_lower_case", "unpad_inputs")
_STATES = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_USUAL = {
    "model_type": "SentenceTransformer",
    "transformer_task": "feature-extraction",
    "modality_config": _STATES,
    "module_output_name": "token_embeddings",
}
_NORMALIZE = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
_TEXT_FILES = [  # the first that is there and not empty
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]


class Recipe(NamedTuple):
    """How a checkpoint turns texts into vectors.

    Fields:
        transformer: the subfolder of the BERT checkpoint, "" for the folder itself.
        pooling: one of `POOLINGS`.
        normalize: whether vectors are scaled to length 1, before they are cut to truncate_dim.
        max_length: the most tokens of a text, where sentence_bert_config.json says so.
        lower_case: lowercase texts before the tokenizer sees them.
        prompt: what is put before every text.
        prompts: others by their name.
        include_prompt: whether the prompt's tokens take part in pooling.
        truncate_dim: how many numbers of a vector are kept; None: all.
    """

    transformer: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = PROMPTS
    include_prompt: bool = True
    truncate_dim: int | None = None


def read_recipe(folder: str | Path) -> Recipe:
    """Read sentence-transformers' files in a checkpoint directory; without them: mean pooling.

    Raises:
        CheckpointError: a file is missing or corrupt, or names a path outside the directory.
        UnsupportedError: a module, a pooling mode or a setting that bertfast does not compute.
    """
    folder = Path(folder)
    if not (folder / "modules.json").is_file():
        return Recipe()
    transformer, pooled, scaled = _places(folder / "modules.json")
    for place in scaled:
        _optional(folder / place / "config.json", (), _NORMALIZE)
    pooling, include_prompt = _pooling(folder / pooled / "config.json")
    prompt, prompts, truncate_dim = _of_all(folder / "config_sentence_transformers.json")
    max_length, lower_case = _text(folder / transformer)
    return Recipe(
        transformer=transformer,
        pooling=pooling,
        normalize=bool(scaled),
        max_length=max_length,
        lower_case=lower_case,
        prompt=prompt,
        prompts=prompts,
        include_prompt=include_prompt,
        truncate_dim=truncate_dim,
    )


def _places(path: Path) -> tuple[str, str, list[str]]:
    """The folders of the Transformer, of the Pooling and of what normalizes after it."""
    modules = _modules(path)
    for index, (kind, _) in enumerate(modules):
        expected = ("Transformer", "Pooling", "Normalize")[min(index, 2)]
        name = kind.rpartition(".")[2]
        if name != expected or not kind.startswith("sentence_transformers."):
            got = f"the module {name} is not supported as number {index + 1} ({kind})"
            raise UnsupportedError(f"{path}: {got}, only {expected} is. {ADVICE}")
    if len(modules) < 2:
        raise CheckpointError(f"{path}: expected a Transformer and a Pooling.")
    places = [place for _, place in modules]
    return places[0], places[1], places[2:]


def _modules(path: Path) -> list[tuple[str, str]]:
    """(type, path) of each module, in order."""
    try:
        modules = json.loads(path.read_bytes().decode("utf-8"))
        entries = sorted(modules, key=lambda module: module["idx"])
        found = [(str(module["type"]), module["path"]) for module in entries]
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
    _refuse_others(path, config, (*_POOLING, *_FLAGS))
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UnsupportedError(
            f"{path}: pooling by {' + '.join(map(str, modes))} is not supported, "
            f"only by {', '.join(POOLINGS)}. {ADVICE}"
        )
    return modes[0], bool(config.get("include_prompt", True))


def _of_all(path: Path) -> tuple[str, dict[str, str], int | None]:
    """The default prompt, all prompts by their name, and truncate_dim."""
    config = _optional(path, (*_OF_ALL, *_ABOUT_IT))
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise CheckpointError(f"{path}: prompts: expected strings by name, got {prompts!r}.")
    prompts = {**PROMPTS, **prompts}
    name = config.get("default_prompt_name")
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise CheckpointError(f"{path}: default_prompt_name is {name!r}, which is no prompt there.")
    return prompts.get(name, ""), prompts, _count(path, config, "truncate_dim")


def _text(folder: Path) -> tuple[int | None, bool]:
    """The most tokens of a text, and whether it is lowercased."""
    for name in _TEXT_FILES:
        if config := _optional(folder / name, _TEXT):
            longest = _count(folder / name, config, "max_seq_length")
            return longest, bool(config.get("do_lower_case", False))
    return None, False


def _count(path: Path, config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise CheckpointError(f"{path}: {key}: expected a positive number, got {value!r}.")
    return value


def _optional(
    path: Path, known: Collection[str], usual: Mapping[str, Any] = _USUAL
) -> dict[str, Any]:
    """What a file says, if it is there: `known` keys, and others that say what is `usual`."""
    config = read_json(path, CheckpointError) if path.is_file() else {}
    _refuse_others(path, config, known, usual)
    return config


def _refuse_others(
    path: Path, config: dict[str, Any], known: Collection[str], usual: Mapping[str, Any] = _USUAL
) -> None:
    for key, value in config.items():
        if key not in known and value and value != usual.get(key):
            raise UnsupportedError(f"{path}: {key} = {value!r} is not supported. {ADVICE}")
