"""Recipes: what a training run does, as a YAML file or as an object."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.hub import require
from ..data.masking import Masking
from ..errors import ArgumentError, RecipeError

OPTIMIZERS = ("adamw", "lamb")
SCHEDULES = ("linear", "warmup-stable-decay", "budget")
DTYPES = ("float32", "bfloat16")
SHARDINGS = ("ddp", "fsdp")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Phase:
    """A part of a run with examples of one length.

    Args:
        length: the most tokens of an example.
        steps: of the optimizer; the last phase of a run with a budget ends when its time does.
        batch: sequences of a step, over all processes. micro_tokens: the most tokens that a process computes at a time.
    """

    length: int = 128
    steps: int = 1000
    batch: int = 256
    micro_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("length", "steps", "batch", "micro_tokens"):
            _positive(f"phases: {name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run trains, whatever it trains for.

    Args:
        phases: one after the other.
        seed: of weights, examples, masks and dropout.
        optimizer: "adamw" or "lamb". bias_correction: of the moments; the paper's Adam has none.
        learning_rate: the highest. betas, eps, weight_decay: weights alone decay, biases and LayerNorm do not.
        schedule: "linear" (to 0 at the last step), "warmup-stable-decay" (falls in the last `decay` share of the
            steps), or "budget" (linear in the share of the time that is used). warmup: share of the run.
        budget: time that training may take, as in "24h" or "90m", with schedule "budget".
        ramp: share of the run in which the batch grows to its size, from an eighth of it.
        clip: largest norm of the gradient; 0: any.
        dtype: "float32", or "bfloat16" by autocast. gradient_checkpointing: computes a layer again for its gradient.
        sharding: with several processes, "ddp" or "fsdp".
        log_every, evaluate_every, save_every: steps; 0: never (a run saves at its end all the same).
        evaluate_examples: held-out examples that are looked at. keep: checkpoints that stay.

    Raises:
        ArgumentError: a field is out of its range, or two do not go together.
    """

    phases: tuple[Phase, ...] = field(default_factory=lambda: (Phase(),))
    seed: int = 0
    optimizer: str = "adamw"
    bias_correction: bool = True
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01
    schedule: str = "linear"
    warmup: float = 0.01
    decay: float = 0.1
    budget: str | None = None
    ramp: float = 0.0
    clip: float = 1.0
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    sharding: str = "ddp"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_examples: int = 512
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        choices = (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("dtype", DTYPES))
        for name, known in (*choices, ("sharding", SHARDINGS)):
            if getattr(self, name) not in known:
                raise ArgumentError(name, "one of " + ", ".join(known), repr(getattr(self, name)))
        _check_shares(self, "warmup", "decay", "ramp")
        for name in ("learning_rate", "eps"):
            value = getattr(self, name)
            if not _number(value) or value <= 0:
                raise ArgumentError(name, "a number above 0", repr(value))
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            if not _number(value) or value < 0:
                raise ArgumentError(name, "0 or more", repr(value))
        for name in ("log_every", "evaluate_every", "save_every"):
            _positive(name, getattr(self, name), least=0)
        for name in ("keep", "evaluate_examples"):
            _positive(name, getattr(self, name))
        if not self.phases:
            raise ArgumentError("phases", "at least one", "none")
        if (self.schedule == "budget") != (self.budget is not None):
            raise ArgumentError("budget", 'a time with schedule "budget" alone', repr(self.budget))
        self.seconds()

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def seconds(self) -> float | None:
        """The budget, in seconds; None without one."""
        if self.budget is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(self.budget).strip())
        if not found or float(found[1]) == 0:
            raise ArgumentError("budget", 'a time such as "24h", "90m" or "30s"', repr(self.budget))
        return float(found[1]) * _UNITS[found[2]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """A pretraining run. Every field, those of `Settings` too, is a key of a recipe's YAML file.

    Args:
        store: folder of `bertfast prepare`.
        model: a checkpoint to go on with; None: a new model.
        config: fields of transformers' BertConfig: of a new model (vocab_size is the store's), or those that replace
            `model`'s, as dropout.
        next_sentence, hard, short, held_out: see `tasks.pretraining.Pretraining`; masking: `data.masking.Masking`.

    Raises:
        ArgumentError: as `Settings`.
    """

    store: str
    model: str | None = None
    config: Mapping[str, Any] | None = None
    next_sentence: bool = True
    hard: float = 0.0
    short: float = 0.0
    held_out: float = 0.0
    masking: Masking = field(default_factory=Masking)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(self, "held_out", "hard", "short")
        if self.model is None and self.config is None:
            raise ArgumentError("model, config", "one of the two at least", "neither")
        if self.evaluate_every and not self.held_out:
            raise ArgumentError("held_out", "a share above 0 with evaluate_every", "0")


def from_dict(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """The recipe of plain values.

    Raises:
        RecipeError: an unknown key (the nearest known one is named), or a value that is wrong; `source` is named.
    """
    try:
        values = _known(Recipe, values, source)
        if "phases" in values:
            phases = values["phases"]
            if not isinstance(phases, list | tuple):
                raise ArgumentError("phases", "a list", type(phases).__name__)
            values["phases"] = tuple(Phase(**_known(Phase, phase, source)) for phase in phases)
        if "masking" in values:
            values["masking"] = Masking(**_known(Masking, values["masking"], source))
        if "betas" in values:
            values["betas"] = _betas(values["betas"])
        if "store" not in values:
            raise ArgumentError("store", "the folder of bertfast prepare", "nothing")
        return Recipe(**values)
    except (ArgumentError, TypeError) as error:
        raise RecipeError(f"{source}: {error}") from error


def read_recipe(path: str | os.PathLike[str], **changes: Any) -> Recipe:
    """The recipe of a YAML file; one without a folder in its name, as bert-base, may be one that comes with bertfast.

    Args:
        changes: fields that replace those of the file. With a `model` in the place of a new one, the sizes in the
            file's `config` are left out, as the checkpoint has its own; what else stands there (dropout) holds.

    Raises:
        RecipeError: no file, not YAML, or wrong fields.
        UnsupportedError: the package pyyaml is missing.
    """
    yaml = require("yaml", "Reading recipes", "pyyaml")
    path = _find(Path(path))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: expected a YAML file ({error}).") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected keys and values, got {type(values).__name__}.")
    config = values.get("config")
    if changes.get("model") and not values.get("model") and isinstance(config, dict):
        values["config"] = {name: config[name] for name in config if name not in _SIZES}
    return from_dict({**values, **changes}, str(path))


def shipped() -> list[str]:
    """Names of the recipes that come with bertfast."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


_FOLDER = Path(__file__).parents[1] / "recipes"
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    own = _FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent == Path() and own.is_file():
        return own
    raise RecipeError(
        f"{path}: no such file, and of the recipes that come with bertfast none is called so "
        f"({', '.join(shipped())})."
    )


def _known(kind: type, values: Any, source: str) -> dict[str, Any]:
    """The values by name, numbers such as 1e-4, which YAML reads as text, as numbers."""
    if not isinstance(values, Mapping):
        raise ArgumentError(
            kind.__name__.lower(), "keys and values", type(values).__name__, f"In {source}."
        )
    names = [item.name for item in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            advice = f"Did you mean {near[0]}?" if near else None
            raise ArgumentError(str(key), f"a field of {kind.__name__}", "an unknown one", advice)
    return {key: _as_number(value) for key, value in values.items()}


def _as_number(value: Any) -> Any:
    found = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if found else value


def _betas(value: Any) -> tuple[float, float]:
    right = isinstance(value, list | tuple) and len(value) == 2 and all(map(_number, value))
    if not right or not all(0 <= beta < 1 for beta in value):
        raise ArgumentError("betas", "two numbers from 0 to below 1", repr(value))
    return float(value[0]), float(value[1])


def _check_shares(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not _number(value) or not 0 <= value <= 1:
            raise ArgumentError(name, "a share from 0 to 1", repr(value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(name, f"a whole number, at least {least}", repr(value))
