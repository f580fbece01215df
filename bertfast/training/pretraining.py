"""A run of pretraining."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.store import Store
from ..errors import ArgumentError
from ..tasks.pretraining import Pretraining
from .evaluation import evaluate
from .loop import Loop
from .recipe import Recipe, read_recipe
from .run import logger, train


def pretrain(
    recipe: Recipe | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Pretrain BERT as a recipe says: see `run.train`, which tells of arguments and errors.

    Args:
        recipe: `training.recipe.Recipe`, or the name of a YAML file (see `read_recipe`).

    Returns: the folder of the model, which transformers and bertfast load, with its tokenizer.

    Raises:
        StoreError: the store is damaged, or has another vocabulary than the recipe's model.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    return train(Job(recipe), Path(folder), device=device, say=say)


class Job:
    """See `run.Job`. A store is known by its fingerprint, wherever it lies."""

    free, patience = ("store",), 0

    def __init__(self, recipe: Recipe):
        self.settings, self.store = recipe, Store.open(recipe.store)
        self.fingerprint = self.store.fingerprint
        self.tasks = make_tasks(recipe, self.store)

    def make_model(self, folder: Path | None) -> nn.Module:
        return make_model(self.settings, self.store, folder)

    def save_model(self, model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        from ..models import pretraining

        pretraining.save_model(model, weights, self.store.tokenizer_folder, folder)

    def evaluate(self, step: int, loop: Loop) -> dict[str, float]:
        phase, _ = loop.steps.phase_of(step - 1)
        task = make_task(self.settings, self.store, phase, "held-out")
        return evaluate(task, loop.wrapped, self.settings.evaluate_examples, loop.processes)

    def score(self, metrics: Mapping[str, float]) -> None:
        return None

    def complete(self, folder: Path, device: torch.device) -> None:
        pass  # a checkpoint has all that is needed


def make_tasks(recipe: Recipe, store: Store) -> list[Pretraining]:
    """Of each phase."""
    return [make_task(recipe, store, phase, "train") for phase in range(len(recipe.phases))]


def make_task(recipe: Recipe, store: Store, phase: int, part: str) -> Pretraining:
    """The examples of a phase, train or held-out."""
    names = ("seed", "next_sentence", "hard", "short", "masking", "held_out")
    options = {name: getattr(recipe, name) for name in names}
    return Pretraining(store, length=recipe.phases[phase].length, part=part, **options)


def make_config(recipe: Recipe, store: Store) -> Any:
    """The BertConfig of the recipe's model.

    Raises:
        ArgumentError: it is none, or has too few positions for a phase.
    """
    from ..models import pretraining

    fields = dict(recipe.config or {})
    if recipe.model is None:
        fields |= {"vocab_size": store.vocab_size, "pad_token_id": store.pad}
    config = pretraining.make_config(recipe.model, fields)
    longest, positions = max(p.length for p in recipe.phases), config.max_position_embeddings
    if longest > positions:
        raise ArgumentError("phases: length", f"at most {positions}, the positions", str(longest))
    return config


def make_model(recipe: Recipe, store: Store, folder: Path | None = None) -> nn.Module:
    """BERT with the heads of pretraining: of a checkpoint's folder, of the recipe's model, or new by its config.

    Raises:
        StoreError: the recipe's model has another vocabulary than the store.
        ArgumentError: see `make_config`.
    """
    from ..models import pretraining

    config = make_config(recipe, store)
    if folder is None and recipe.model is not None:
        store.check_vocabulary(recipe.model)
    source = folder or recipe.model
    return pretraining.make_model(config, source, recipe.seed, recipe.next_sentence)
