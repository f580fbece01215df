"""A pretrained model on held-out documents, beside what it has to beat."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from ..data.batches import Batch
from ..data.masking import NO_LABEL
from ..data.parts import documents_of
from ..data.store import Store
from ..errors import ArgumentError, StoreError
from ..inference.encoder import Encoder, check_count
from ..training.evaluation import evaluate as measure
from ..training.evaluation import some
from ..training.processes import Processes
from . import baselines
from .baselines import Counts, Pairs, Score
from .intervals import wilson
from .pretraining import Pretraining

# of examples and masks: the same for every model, and not a seed that a recipe is likely to have
SEED, _FIT_SEED = 0x6576616C00000000, 0x6576616C00000001
# the share of false second sides that come from the same document
HARD = {"easy": 0.0, "hard": 1.0}
_COLLATED = 1024  # examples at a time
_LARGE = 700.0  # exp of more is no float


@dataclass(frozen=True)
class Share:
    """What share of trials was right, with Wilson's interval at 95 %, which takes the trials as independent."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Words:
    """Of masked words: the loss in nats a label, exp of it, and how many are told right."""

    loss: float
    perplexity: float
    accuracy: Share


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        held_out: the share of documents that is held out; 0: all documents were evaluated.
        documents: that were evaluated. length: the most tokens of an example.
        examples: how many. labels: masked words in them.
        masked_lm: "model" and "unigram".
        next_sentence: of "easy" and "hard" pairs, "model", "bag of words" and perhaps "embedder"; None where the model
            has no such head.
    """

    held_out: float
    documents: int
    length: int
    examples: int
    labels: int
    masked_lm: dict[str, Words]
    next_sentence: dict[str, dict[str, Share]] | None


def evaluate(
    model: nn.Module,
    store: Store,
    *,
    held_out: float = 0.05,
    length: int = 128,
    examples: int = 2000,
    embedder: Encoder | None = None,
) -> Evaluation:
    """Masked words, and next sentences where the model has that head, on documents that training did not see.

    Examples and masks depend on the store, `held_out` and `length` alone. Beside the model: unigram frequencies; and
    for pairs how alike their sides are by idf-weighted words and by `embedder`, unmasked, with a threshold that was
    fitted on `examples` pairs of the training part. A model without the head for pairs gets examples of one side.

    Args:
        model: bertfast's `BertForPreTraining` or `BertForMaskedLM`; it is left in eval mode.
        held_out: as training held out; 0: all documents.
        length: the most tokens of an example. examples: the most that are looked at, from all over the documents.
        embedder: of sentences.

    Raises:
        ArgumentError: another model, or an argument is out of its range.
        StoreError: the model has fewer tokens than the store.
    """
    paired = _check(model, store, length)
    check_count("examples", examples, 1)
    documents = _documents(store, held_out, paired)
    processes = Processes(next(model.parameters()).device)
    options = {"length": length, "next_sentence": paired, "held_out": held_out}
    part = "held-out" if held_out else "train"
    tasks = {
        kind: Pretraining(store, seed=SEED, part=part, hard=hard, **options)
        for kind, hard in (HARD if paired else {"easy": 0.0}).items()
    }
    found = {kind: measure(task, model, examples, processes) for kind, task in tasks.items()}
    counts = baselines.count(store, documents_of(store, held_out, "train"))
    labels = np.concatenate([_labels(batch) for batch in _batches(tasks["easy"], examples)])
    words, pairs = _masked_lm(found["easy"], labels, counts, store), None
    if paired:
        scores = {"bag of words": baselines.bag_of_words(counts.idf())}
        if embedder is not None:
            scores["embedder"] = baselines.embedded(embedder, store)
        fits = {
            kind: Pretraining(store, seed=_FIT_SEED, hard=HARD[kind], **options) for kind in tasks
        }
        pairs = {
            kind: _next_sentence(found[kind], scores, fits[kind], task, examples)
            for kind, task in tasks.items()
        }
    count = len(some(tasks["easy"], examples).indices)
    return Evaluation(held_out, documents, length, count, len(labels), words, pairs)


def _share(value: float, trials: int) -> Share:
    return Share(value, *wilson(round(value * trials), trials))


def _check(model: nn.Module, store: Store, length: int) -> bool:
    """Whether the model has the head for pairs. Raises what `evaluate` raises of the model."""
    from ..models.heads import BertForMaskedLM, BertForPreTraining

    if not isinstance(model, BertForMaskedLM | BertForPreTraining):
        expected = "bertfast's BertForPreTraining or BertForMaskedLM"
        raise ArgumentError("model", expected, type(model).__name__)
    if model.config.vocab_size < store.vocab_size:
        raise StoreError(
            f"{store.folder}: made with a vocabulary of {store.vocab_size} tokens, the model has "
            f"{model.config.vocab_size}. Run bertfast prepare with its tokenizer, into another folder."
        )
    if length > (positions := model.config.max_position_embeddings):
        raise ArgumentError("length", f"at most {positions}, the model's positions", str(length))
    return isinstance(model, BertForPreTraining)


def _documents(store: Store, held_out: float, paired: bool) -> int:
    """How many are evaluated."""
    if not held_out:
        return store.documents
    count = len(documents_of(store, held_out, "held-out"))
    if paired and count < 2:
        expected = "a share that holds out two documents or more, for pairs"
        raise ArgumentError("held_out", expected, f"{held_out!r} of {store.documents} documents")
    return count


def _masked_lm(
    found: dict[str, float], labels: np.ndarray, counts: Counts, store: Store
) -> dict[str, Words]:
    """The model, and the unigram baseline, on masked words whose true tokens are `labels`."""
    always = float((labels == counts.most_frequent(store.unused)).mean())
    figures = {
        "model": (found["masked_lm_loss"], found["masked_lm_accuracy"]),
        "unigram": (counts.unigram_loss(labels), always),
    }
    return {
        name: Words(loss, math.exp(min(loss, _LARGE)), _share(right, len(labels)))
        for name, (loss, right) in figures.items()
    }


def _next_sentence(
    found: dict[str, float],
    scores: dict[str, Score],
    fit: Pretraining,
    task: Pretraining,
    examples: int,
) -> dict[str, Share]:
    """The model, and the scores with thresholds fitted on examples of `fit`, on those of `task`."""
    count = len(some(task, examples).indices)
    right = {"model": found["next_sentence_accuracy"]}
    right |= _told_apart(scores, _pairs(fit, examples), _pairs(task, examples))
    return {name: _share(share, count) for name, share in right.items()}


def _batches(task: Pretraining, examples: int) -> Iterator[Batch]:
    """What the model was measured on."""
    piece = some(task, examples)
    for start in range(0, len(piece.indices), _COLLATED):
        yield task.collate(piece.indices[start : start + _COLLATED], piece.epoch)


def _labels(batch: Batch) -> np.ndarray:
    return batch.labels[batch.labels != NO_LABEL].numpy()


def _pairs(task: Pretraining, examples: int) -> list[Pairs]:
    return [baselines.pairs_of(batch) for batch in _batches(task, examples)]


def _told_apart(scores: dict[str, Score], fit: list[Pairs], held: list[Pairs]) -> dict[str, float]:
    """The share of pairs `held` that each score tells right, by a threshold that is best for the pairs `fit`."""
    found = {}
    before, follows = (np.concatenate([pairs.follows for pairs in part]) for part in (fit, held))
    for name, score in scores.items():
        fitted, new = (np.concatenate([score(pairs) for pairs in part]) for part in (fit, held))
        threshold = baselines.fit_threshold(fitted, before)
        found[name] = float(((new >= threshold) == follows).mean())
    return found
