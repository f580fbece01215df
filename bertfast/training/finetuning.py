"""A run of fine-tuning: a model with a task's head, on examples of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint.hub import resolve
from ..checkpoint.load import read_config
from ..data.labelled.columns import check_count
from ..data.labelled.split import split
from ..data.labelled.tables import Table, read_table
from ..data.philox import check_seed
from ..data.sequences import Sequences
from ..errors import ArgumentError
from ..tasks.form import Columns, Form
from ..tasks.kinds import KINDS, Answers, Examples, Kind, Weighted, balanced
from ..tasks.report import write_reports
from ..tasks.supervised import Supervised
from ..text.tokenizer import Tokenizer
from . import ranks
from .loop import Loop
from .recipe import Phase, Settings
from .run import logger, train

LENGTHS = {"qa": 384}  # default of others: 128
_TOKENS = 8192  # of a batch that is only evaluated


@dataclass(frozen=True, kw_only=True)
class FineTuning(Settings):
    """How a model is fine-tuned. The defaults are the classic recipe (Devlin et al., 2019, appendix A.3).

    Args:
        task: single, pair, choice, qa, tokens or regression; or the name of a task of GLUE.
        train: a file (see `tasks.form.Columns`), of GLUE the folder of the tasks' folders.
        dev: one to evaluate on; None: a `share` of train, whole groups of equal values of the column `group`.
        model: a checkpoint to begin with.
        columns: where the files have what. several: a text may have any number of labels.
        weights: "balanced" makes rare classes count as much as frequent ones; None: as they come.
        epochs, batch: how often every example is seen, and examples of a step. micro_tokens: the most tokens that are
            computed at a time.
        length: the most tokens of a sequence; default 128, of questions 384. long, stride, language: see `Form`.
        freeze: "embeddings", "encoder" (these and all layers), or a number of layers, that stay as they are.
        patience: epochs without a better score on dev after which the run ends; 0: it does not.
    """

    task: str
    train: str
    model: str
    dev: str | None = None
    share: float = 0.1
    group: str | None = None
    columns: Columns = field(default_factory=Columns)
    several: bool = False
    weights: str | None = None
    epochs: int = 3
    batch: int = 32
    micro_tokens: int = 8192
    length: int | None = None
    long: str | None = None
    stride: int | None = None
    language: str = "en"
    freeze: str | int | None = None
    patience: int = 0
    learning_rate: float = 5e-5
    warmup: float = 0.1
    log_every: int = 10
    keep: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch", "micro_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(name, "a whole number, at least 1", repr(value))
        if not isinstance(self.patience, int) or self.patience < 0:
            raise ArgumentError("patience", "a whole number, 0 or more", repr(self.patience))
        if self.weights not in (None, "balanced"):
            raise ArgumentError("weights", "balanced, or none", repr(self.weights))
        check_seed(self.seed)
        self.form(max(512, self.length or 0))  # raises what is wrong now

    def form(self, positions: int) -> Form:
        """The form of the task, before it knows its data. positions: those of the model."""
        from ..tasks import glue

        task, name, columns = self.task, None, self.columns
        if self.task in glue.TASKS:
            found, name = glue.TASKS[self.task], self.task
            task = (
                "regression" if found.labels is None else ("single", "pair")[len(found.texts) - 1]
            )
            sides = (*found.texts, None)[:2]
            columns = Columns(text=sides[0], text_pair=sides[1], label=found.label, kind="tsv")
        else:
            columns = columns.of_task(task)
        long = self.long or ("slide" if task in ("tokens", "qa") else "truncate")
        if task == "qa" and long == "truncate":
            advice = "Answers are searched in all windows."
            raise ArgumentError("long", "slide, with the task qa", long, advice)
        length = self.length or min(LENGTHS.get(task, 128), positions)
        if length > positions:
            raise ArgumentError(
                "length", f"at most {positions}, the model's positions", str(length)
            )
        given = {"several": self.several, "stride": self.stride, "language": self.language}
        return Form(task, columns, name, long=long, max_length=length, **given)


def finetune(
    recipe: FineTuning,
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = logger.info,
) -> Path:
    """Fine-tune a model: see `run.train`, which tells of arguments and errors.

    Returns: the folder of the model, which transformers and `bertfast.load` load: the checkpoint of the epoch with the
        best score on the examples to evaluate on, with its tokenizer, its task, and a card. Beside it lie predictions
        and pictures of the curves and, of labels, what was taken for what.

    Raises:
        InputFileError: a file is missing or wrong; the message has the line.
        CheckpointError, ConfigError: so is the model.
    """
    first = int(os.environ.get("RANK", 0)) == 0
    job = Job(recipe, say if first else lambda line: None)
    return train(job, Path(folder), device=device, say=say)


class Job:
    """See `run.Job`. Examples are read, split and tokenized as it is made."""

    free = ("train", "dev", "model")

    def __init__(self, recipe: FineTuning, say: Callable[[str], None] = logger.info):
        self.source = resolve(recipe.model)
        self.tokenizer = Tokenizer.from_folder(self.source)
        self.kind, self.train, self.dev = read(recipe, self.source, self.tokenizer, say)
        check_count(recipe.train, len(self.train.inputs), recipe.batch)
        sequences = self.kind.encode(self.train.inputs)
        self.kind = _learned(recipe, self.kind, self.train, sequences)
        self.training = _supervised(self.kind, self.train, sequences)
        self.held_out = _supervised(self.kind, self.dev, self.kind.encode(self.dev.inputs))
        _say_long(self.training, len(self.train.inputs), say)
        self.settings = _planned(recipe, self.training)
        self.tasks = [self.training]
        self.patience = recipe.patience
        self.fingerprint = _fingerprint(self.training, self.held_out)

    def make_model(self, folder: Path | None) -> nn.Module:
        from ..models import finetuning

        kind = self.kind
        source, options = folder or self.source, (kind.labels, kind.problem)
        model = finetuning.make_model(kind.head, source, self.settings.seed, *options)
        finetuning.freeze(model, self.settings.freeze)
        return model

    def save_model(self, model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        from ..models import pretraining

        pretraining.save_model(model, weights, self.source, folder)
        self.kind.form.save(folder)

    def evaluate(self, step: int, loop: Loop) -> dict[str, float]:
        found, loss = predict(self.held_out, loop)
        gathered = self.kind.gather(self.held_out.sequences, found)
        form = self.kind.tuned(self.dev.gold, gathered)
        kind = self._with(form)
        return {"loss": loss, **kind.scores(self.dev.gold, gathered)}

    def score(self, metrics: Mapping[str, float]) -> list[float]:
        """The task's first metric; of equal ones the lowest loss."""
        first = next(value for name, value in metrics.items() if name != "loss")
        return [first, -metrics["loss"]]

    def complete(self, folder: Path, device: torch.device) -> None:
        """What is tuned on dev, the card, and beside the folder the reports."""
        from ..models.finetuning import load_finetuned

        model = load_finetuned(folder, self.kind.head, torch.float32).to(device)
        outputs, _ = self.held_out.outputs(model, _parts(self.held_out, 1)[0], device)
        rows = [outputs[i] for i in range(len(outputs))]
        found = self.kind.gather(self.held_out.sequences, rows)
        kind = self._with(self.kind.tuned(self.dev.gold, found))
        kind.form.save(folder)
        write_reports(kind, self.settings, self.train, self.dev, found, folder)

    def _with(self, form: Form) -> Kind:
        return KINDS[form.task](form, self.tokenizer)


def read(
    recipe: FineTuning, source: Path, tokenizer: Tokenizer, say: Callable[[str], None]
) -> tuple[Kind, Examples, Examples]:
    """The kind of the task, as its data has made it, and the examples to train and to evaluate on."""
    form = recipe.form(read_config(source)["max_position_embeddings"])
    kind = KINDS[form.task]
    opened = kind.open(form, recipe.train, "train")
    form = kind.learn(form, opened)
    train = kind.examples(form, opened, True)
    if train.dropped:
        say(f"{recipe.train}: {train.dropped}")
    if recipe.dev is None and form.glue is None:
        groups = _groups(recipe, opened)
        first, second = split(len(train.inputs), recipe.share, groups=groups)
        dev, train = train.subset(second), train.subset(first)
        said = f"{len(second)} of {len(first) + len(second)} examples are held out to evaluate on"
        say(f"{said} (share {recipe.share:g}, the same for every seed); --dev names a file instead")
    else:
        part = "dev" if form.glue is None else _dev_of(form.glue)
        dev = kind.examples(form, kind.open(form, recipe.dev or recipe.train, part), True)
        if dev.dropped:
            say(f"{recipe.dev or recipe.train}: {dev.dropped}")
    return kind(form, tokenizer), train, dev


def predict(task: Supervised, loop: Loop) -> tuple[list[np.ndarray], float]:
    """The logits of all sequences and the loss, computed by all processes, known to each."""
    processes = loop.processes
    loop.wrapped.eval()
    own = task.outputs(
        loop.wrapped, _parts(task, processes.count)[processes.rank], processes.device
    )
    shares = min(processes.count, task.examples(0))
    found: dict[int, np.ndarray] = {}
    total = 0.0
    for some, loss in processes.gather(own)[:shares]:
        found |= some
        total += loss
    return [found[i] for i in range(len(found))], total


def _parts(task: Supervised, processes: int) -> list[list[np.ndarray]]:
    """For each process its batches, equally many; a process without an example of its own has one of another's."""
    lengths = task.lengths(0)
    shares = min(processes, len(lengths))
    parts = ranks.parts_of_step(lengths, lengths.astype(float), shares, _TOKENS)
    return [parts[rank % shares] for rank in range(processes)]


def _learned(recipe: FineTuning, kind: Kind, train: Examples, sequences: Sequences) -> Kind:
    """The kind with what the examples to train on say besides their labels."""
    if isinstance(kind, Answers):
        return Answers(kind.limited(train.gold, sequences), kind.tokenizer)
    if recipe.weights is None:
        return kind
    if kind.problem != "single_label_classification":
        raise ArgumentError("weights", "a task with single labels", recipe.task)
    weights = balanced(train.gold, len(kind.labels))
    return Weighted(kind.form, kind.tokenizer, weights=weights)


def _say_long(task: Supervised, count: int, say: Callable[[str], None]) -> None:
    """How many of the examples do not fit a sequence, and what becomes of them."""
    form, cut = task.kind.form, task.sequences.cut
    slides = form.long == "slide"
    if cut:
        lost = (
            "the end of their first text"
            if slides
            else "their end; long=slide reads them in windows"
        )
        say(f"{cut} of {count} examples are longer than {form.max_length} tokens and lose {lost}")
    windows = np.bincount(task.sequences.owner)
    if slides and (several := int((windows > 1).sum())):
        said = (
            f"longer than {form.max_length} tokens and read in {windows[windows > 1].sum()} windows"
        )
        say(f"{several} of {count} examples are {said}")


def _supervised(kind: Kind, examples: Examples, sequences: Sequences) -> Supervised:
    return Supervised(kind, sequences, kind.targets(examples.gold, sequences))


def _planned(recipe: FineTuning, task: Supervised) -> FineTuning:
    """The recipe with its steps; an epoch has as many as come nearest to its examples."""
    each = max(1, round(task.examples(0) / recipe.batch))
    length = task.kind.form.max_length
    phase = Phase(length, each * recipe.epochs, recipe.batch, recipe.micro_tokens)
    return replace(recipe, phases=(phase,), evaluate_every=each, save_every=each)


def _groups(recipe: FineTuning, opened: Any) -> list[Any] | None:
    if recipe.group is None:
        return None
    if hasattr(opened, "questions"):
        if recipe.group != "title":
            raise ArgumentError("group", "title, of questions", repr(recipe.group))
        return [question.title for question in opened.questions]
    if not isinstance(opened, Table):
        raise ArgumentError("group", "a file with columns", repr(recipe.group))
    named = recipe.columns
    table = read_table(recipe.train, [recipe.group], kind=named.kind, header=named.header)
    return table.columns[recipe.group]


def _dev_of(name: str) -> str:
    return "dev_matched" if name == "mnli" else "dev"


def _fingerprint(*tasks: Supervised) -> str:
    """Of the tokens and labels."""
    found = hashlib.sha256()
    for task in tasks:
        found.update(task.sequences.tokens.tobytes())
        for values in (*task.targets.examples.values(), *task.targets.tokens.values()):
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()
