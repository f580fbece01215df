"""BERT's pretraining: masked words and the next sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data import plan
from ..data.batches import Batch, assemble, batch, join
from ..data.masking import LONGEST, NO_LABEL, Masking, Words, mask
from ..data.order import Piece
from ..data.parts import PARTS, documents_of
from ..data.philox import check_seed
from ..data.store import Store
from ..errors import ArgumentError

SHORTEST = 5  # tokens of the shortest pair: [CLS] a [SEP] b [SEP]


class Pretraining:
    """The examples of a store. All is a function of the arguments, the epoch and the example's index: nothing is drawn
    from a generator, and any process makes any batch.

    Args:
        store: from `Store.open`.
        seed: 0 to 2**64 - 1.
        length: the most tokens of an example, special ones counted; 5 to 8192.
        next_sentence: two sides by the pair rule (`data/plan.py`); else one, which fills the length.
        hard: probability that a false second side comes from the same document.
        short: probability of a shorter example, 0.1 in the paper.
        masking: how tokens are chosen and replaced.
        held_out: the share of documents that training does not see.
        part: "train", or "held-out" for those.

    Raises:
        ArgumentError: an argument is out of its range, or the store cannot give such examples: next sentences need two
            documents, and two sentences in at least half of the examples.
    """

    def __init__(
        self,
        store: Store,
        *,
        seed: int,
        length: int = 128,
        next_sentence: bool = True,
        hard: float = 0.0,
        short: float = 0.0,
        masking: Masking = Masking(),  # noqa: B008, it is frozen
        held_out: float = 0.0,
        part: str = "train",
    ):
        for name, value in (("hard", hard), ("short", short), ("held_out", held_out)):
            if not 0 <= value <= 1:
                raise ArgumentError(name, "a share from 0 to 1", repr(value))
        if not SHORTEST <= length <= LONGEST:
            advice = f"[CLS] a [SEP] b [SEP] has {SHORTEST}."
            raise ArgumentError("length", f"{SHORTEST} to {LONGEST} tokens", repr(length), advice)
        if part not in PARTS:
            raise ArgumentError("part", " or ".join(PARTS), repr(part))
        self.store, self.seed, self.length = store, check_seed(seed), length
        self.next_sentence, self.hard, self.short = next_sentence, hard, short
        self.masking = masking
        self._documents = documents_of(store, held_out, part)
        ordinary = np.setdiff1d(np.arange(store.vocab_size), store.unused)
        self._words = Words(store.mask, ordinary)
        self._kept: dict[int, tuple[plan.Plan, np.ndarray]] = {}
        self._epoch(0)  # raises what is wrong with the store now

    def examples(self, epoch: int) -> int:
        """How many examples the epoch has."""
        return len(self._epoch(epoch)[0])

    def lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each example, special ones counted; int32 [examples], not to be written to."""
        return self._epoch(epoch)[1]

    def labels(self, epoch: int) -> np.ndarray:
        """Tokens to predict of each example: max(1, round(share * length)); int32 [examples]."""
        special = self._epoch(epoch)[0].special
        return self.masking.labels(self.lengths(epoch), special).astype(np.int32)

    def collate(self, indices: Sequence[int] | np.ndarray, epoch: int) -> Batch:
        """The examples with these indices of the epoch, in this order, masked and packed.

        Raises:
            ArgumentError: an index that the epoch does not have, or none at all.
        """
        found, _ = self._epoch(epoch)
        indices = np.asarray(indices, dtype=np.int64)
        if not indices.size or indices.min() < 0 or indices.max() >= len(found):
            got = f"{indices.min()} to {indices.max()}" if indices.size else "none"
            raise ArgumentError("indices", f"one or more from 0 to {len(found) - 1}", got)
        spans = found.spans(indices)
        sequences = assemble(self.store, spans, self.masking.whole_words)
        inputs, labels = mask(
            sequences.tokens,
            sequences.cu_seqlens,
            sequences.special,
            sequences.starts_word,
            words=self._words,
            masking=self.masking,
            seed=self.seed,
            epoch=epoch,
            indices=indices,
        )
        return batch(sequences, inputs, labels, spans.follows, epoch * len(found) + indices)

    def batch(self, pieces: Sequence[Piece]) -> Batch:
        """The examples of the pieces, in this order, as `collate` makes them."""
        return join([self.collate(piece.indices, piece.epoch) for piece in pieces])

    def totals(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """What the losses of a step are divided by, whoever computes which part: labels, and sequences."""
        labels = sum(int(self.labels(piece.epoch)[piece.indices].sum()) for piece in pieces)
        return {"labels": labels, "sequences": sum(len(piece.indices) for piece in pieces)}

    def loss(
        self, model: torch.nn.Module, batch: Batch, totals: Mapping[str, int], measured: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The part of a step's loss that a batch has, and what is counted, whose sums over batches `metrics` reads.

        Args:
            model: `BertForPreTraining`, or `BertForMaskedLM` without next sentences; may be wrapped.
            totals: of the whole step.
            measured: count which masked words are right, too, for which their scores are made once more.
        """
        pairs = batch.next_sentence_label is not None
        items = {"num_items_in_batch": totals["labels"]}
        if pairs:
            items["num_sequences_in_batch"] = totals["sequences"]
            items["next_sentence_label"] = batch.next_sentence_label
        output = model(
            input_ids=batch.input_ids,
            token_type_ids=batch.token_type_ids,
            cu_seq_lens_q=batch.cu_seqlens,
            max_length_q=batch.max_seqlen,
            labels=batch.labels,
            example_ids=batch.example_ids,
            output_logits="labelled" if measured else False,
            **items,
        )
        with torch.no_grad():
            counted = {"loss": output.loss.detach()}
            if pairs:
                scores = output.seq_relationship_logits.float()
                follows = batch.next_sentence_label
                lost = torch.nn.functional.cross_entropy(scores, follows, reduction="sum")
                counted["next_sentence_loss"] = lost / totals["sequences"]
                counted["next_sentence_right"] = (scores.argmax(1) == follows).sum()
            if measured:
                scores = output.prediction_logits if pairs else output.logits
                words = batch.labels[batch.labels != NO_LABEL]
                counted["words"] = torch.tensor(len(words))
                counted["words_right"] = (scores.argmax(1) == words).sum()
        return output.loss, counted

    def metrics(self, counted: Mapping[str, float], totals: Mapping[str, int]) -> dict[str, float]:
        """What a step's counts say: losses in nats, accuracies from 0 to 1."""
        found = {"loss": counted["loss"]}
        found["masked_lm_loss"] = counted["loss"] - counted.get("next_sentence_loss", 0.0)
        if "words" in counted:
            found["masked_lm_accuracy"] = counted["words_right"] / max(counted["words"], 1)
        if "next_sentence_right" in counted:
            found["next_sentence_loss"] = counted["next_sentence_loss"]
            right = counted["next_sentence_right"]
            found["next_sentence_accuracy"] = right / totals["sequences"]
        return found

    def _epoch(self, epoch: int) -> tuple[plan.Plan, np.ndarray]:
        """The plan of an epoch and the lengths of its examples; those of the last two that were asked for are kept."""
        kept = self._kept.get(epoch)
        if kept is None:
            made = self._make_plan(epoch)
            kept = made, plan.lengths(made)
            kept[1].setflags(write=False)
            # a new dict, as other threads may read this one
            self._kept = {**dict(list(self._kept.items())[-1:]), epoch: kept}
        return kept

    def _make_plan(self, epoch: int) -> plan.Plan:
        options = {"length": self.length, "short": self.short}
        if self.next_sentence:
            return plan.Pairs(
                self.store, self._documents, self.seed, epoch, hard=self.hard, **options
            )
        return plan.Segments(self.store, self._documents, self.seed, epoch, **options)
