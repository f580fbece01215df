"""Where a checkpoint is: a directory as it stands, or a model id fetched through huggingface_hub into its cache."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import CheckpointError, UnsupportedError

CONFIG_FILES = ("config.json",)
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TEXT_FILES = (
    *TOKENIZER_FILES,
    # sentence-transformers: the list of its modules, and theirs
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
)


def require(module: str, purpose: str, package: str | None = None) -> ModuleType:
    """Import a package that only some functions need; `package` is its name for pip, where that is another.

    Raises:
        UnsupportedError: it is not installed; the message has the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = package or module.partition(".")[0]
        raise UnsupportedError(
            f"{purpose} needs the package {package}: pip install {package}"
        ) from error


def resolve(
    path_or_hub_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """The local directory of a checkpoint.

    A directory that exists is taken as it is. Another name is a model id: its files are fetched into the hub's cache
    (only what bertfast reads; pickled weights only where there are no safetensors). Offline mode (``HF_HUB_OFFLINE=1``)
    and the hub's other variables hold.

    Args:
        path_or_hub_id: a directory, or an id such as "sentence-transformers/all-MiniLM-L6-v2".
        revision: branch, tag or commit of the hub repository.
        token: access token, or True for the stored one.
        cache_dir: another cache directory.
        local_files_only: do not ask the hub, use the cache.
        allow_patterns: names of the files to fetch, instead of all that bertfast reads.

    Raises:
        CheckpointError: no such directory, or the id is unknown, not allowed, or neither cached nor reachable.
    """
    name = os.path.expanduser(os.fspath(path_or_hub_id))
    if os.path.isdir(name):
        return Path(name)
    if os.path.exists(name):
        raise CheckpointError(f"{name}: expected a checkpoint directory, got a file.")
    if isinstance(path_or_hub_id, os.PathLike) or _looks_like_path(str(path_or_hub_id)):
        raise CheckpointError(f"{name}: expected a checkpoint directory, there is none.")
    options = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    if allow_patterns is not None:
        return _fetch(name, allow_patterns, options)
    patterns = (*CONFIG_FILES, *_TEXT_FILES, *_SAFETENSORS)
    folder = _fetch(name, patterns, options)
    if not any((folder / file).is_file() for file in (_SAFETENSORS[0], _SAFETENSORS[-1])):
        folder = _fetch(name, (*patterns, *_PICKLES), options)
    return folder


def _looks_like_path(name: str) -> bool:
    return not name or name[0] in "./~" or "\\" in name or name.count("/") > 1


def _fetch(hub_id: str, patterns: Sequence[str], options: dict[str, Any]) -> Path:
    hub = require("huggingface_hub", f"The model id {hub_id!r}")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=list(patterns), **options))
    except Exception as error:
        # Offline, a cache that holds part of what was asked for may be all that the caller needs.
        partial = getattr(error, "snapshot_path", None)
        if partial is not None and Path(partial, "config.json").is_file():
            return Path(partial)
        raise CheckpointError(_explain(hub_id, error, options)) from error


def _explain(hub_id: str, error: Exception, options: dict[str, Any]) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}  # their module moved between versions
    place = f"{hub_id!r} is no directory here, and as a model id it"
    if "HFValidationError" in kinds:
        return f"{hub_id!r}: expected a checkpoint directory or a model id like 'owner/name'; it is neither."
    if "GatedRepoError" in kinds:
        return f"{place} is gated: accept its terms on the hub, then pass token=... or log in with `hf auth login`."
    if "RepositoryNotFoundError" in kinds:
        return f"{place} is unknown to the hub or private: check the name, or pass token=..."
    if "RevisionNotFoundError" in kinds:
        return f"{place} has no revision {options['revision']!r}."
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return (
            f"{place} is not in the local cache, while offline mode is on or the hub cannot be reached. Load it once "
            f"with a connection (unset HF_HUB_OFFLINE, local_files_only=False), or pass a directory that holds it."
        )
    return f"{place} could not be fetched ({type(error).__name__}: {error})."
