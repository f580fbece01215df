"""The words that a masked-language model puts in the place of [MASK]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn

from ..errors import ArgumentError
from ..heads import BertForMaskedLM, BertForPreTraining
from ..packing import pack_lengths
from .tokenizer import Tokenizer, check_texts

MASK = "[MASK]"
BATCH_TOKENS = 4096


class Candidate(NamedTuple):
    """One word for a [MASK].

    Fields:
        token: as the vocabulary spells it; "##" starts the rest of a word.
        token_id: its row in the vocabulary.
        score: its probability.
    """

    token: str
    token_id: int
    score: float


def fill_mask(
    model: BertForMaskedLM | BertForPreTraining,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    top_k: int = 5,
) -> list[list[list[Candidate]]]:
    """The most probable words for every [MASK] of every text, each [MASK] for itself.

    Args:
        model: one with a masked-language-model head; it is put into eval mode.
        tokenizer: the model's, from `Tokenizer.from_folder`.
        texts: texts that hold [MASK] at least once; or one text.
        top_k: how many words for each [MASK].

    Returns:
        For each text a list with, for each [MASK] in order, its `top_k` candidates, the best first; one text gives
        the list of its [MASK]s.

    Raises:
        ArgumentError: a text is no string, lacks [MASK] or is too long (its index is named); the vocabulary has no
            [MASK]; top_k is no number from 1 to the size of the vocabulary.
    """
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ArgumentError("model", "a BertForMaskedLM", type(model).__name__)
    words = min(len(tokenizer), model.config.vocab_size)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= words:
        raise ArgumentError("top_k", f"an integer from 1 to {words}", repr(top_k))
    mask = tokenizer.backend.token_to_id(MASK)
    if mask is None:
        raise ArgumentError("tokenizer", f"a vocabulary with {MASK}", "one without")
    single = isinstance(texts, str)
    rows = _rows([texts] if single else list(texts), tokenizer, mask, model)
    model.eval()
    spell, filled = tokenizer.backend.id_to_token, []
    for batch in _batches(rows):
        best = iter(_best(model, batch, mask, words, top_k))
        for row in batch:
            masks = islice(best, row.count(mask))
            filled.append([[Candidate(spell(i), i, p) for i, p in mask] for mask in masks])
    return filled[0] if single else filled


def _rows(texts: list[str], tokenizer: Tokenizer, mask: int, model: nn.Module) -> list[list[int]]:
    """The ids of each text."""
    check_texts(texts)
    longest = model.config.max_position_embeddings
    rows, _ = tokenizer(texts)
    for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if mask not in row:
            got = repr(text if len(text) <= 40 else f"{text[:37]}...")
            raise ArgumentError(f"texts[{index}]", f"a text with {MASK}", got)
        if len(row) > longest:
            advice = "Shorten the text."
            raise ArgumentError(
                f"texts[{index}]", f"at most {longest} tokens", str(len(row)), advice
            )
    return rows


def _batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for row in rows:
        if batch and sum(map(len, batch)) + len(row) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _best(
    model: nn.Module, rows: list[list[int]], mask: int, words: int, top_k: int
) -> list[list[tuple[int, float]]]:
    """(id, probability) of the best words for each mask of the rows: one packed call, no other token is scored."""
    ids = torch.tensor([token for row in rows for token in row], device=model.device)
    packed = pack_lengths([len(row) for row in rows], model.device)
    states = model.bert(
        ids[None], cu_seq_lens_q=packed.cu_seqlens, max_length_q=packed.max_seqlen, return_dict=True
    ).last_hidden_state[0]  # [T,H]
    scores = model.cls.predictions(states[ids == mask])[:, :words]
    values, indices = torch.topk(scores.float().softmax(-1), top_k)
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return [list(zip(*pair, strict=True)) for pair in pairs]
