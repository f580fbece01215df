"""The words that a masked-language model puts in the place of [MASK]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch

from ..core.batch import pack_rows
from ..core.encode import encode_packed
from ..core.heads import masked_lm_scores
from ..core.weights import BertWeights, MaskedLMWeights
from ..errors import ArgumentError, UnsupportedError
from ..text.tokenizer import Tokenizer, check_texts
from .encoder import BATCH_TOKENS, batches, check_count

MASK = "[MASK]"


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


Weights = tuple[BertWeights, MaskedLMWeights]


def fill_mask(
    model: Any, tokenizer: Tokenizer, texts: str | Sequence[str], top_k: int = 5
) -> list[list[list[Candidate]]]:
    """The most probable words for every [MASK] of every text, each [MASK] for itself.

    Args:
        model: a `BertForMaskedLM` or `BertForPreTraining`, which is put into eval mode; or the weights that
            `checkpoint.load.load_masked_lm` gives.
        tokenizer: the model's, from `Tokenizer.from_folder`.
        texts: texts that hold [MASK] at least once; or one text.
        top_k: how many words for each [MASK].

    Returns:
        For each text a list with, for each [MASK] in order, its `top_k` candidates, the best first; one text gives
        the list of its [MASK]s.

    Raises:
        ArgumentError: a text is no string, lacks [MASK] or is too long (its index is named); the vocabulary has no
            [MASK]; top_k is no number from 1 to the size of the vocabulary.
        UnsupportedError: the model's modules were changed, so that only transformers' own forward runs.
    """
    weights = model if isinstance(model, tuple) else _weights_of(model)
    table = len(weights[0].embeddings.word)
    words = min(len(tokenizer), table)
    check_count("top_k", top_k, 1, words)
    mask = tokenizer.backend.token_to_id(MASK)
    if mask is None:
        raise ArgumentError("tokenizer", f"a vocabulary with {MASK}", "one without")
    single = isinstance(texts, str)
    limit = weights[0].max_positions
    rows = _rows([texts] if single else list(texts), tokenizer, mask, limit)
    tokenizer.check_ids(rows, table)
    spell, filled = tokenizer.backend.id_to_token, [[] for _ in rows]
    for batch in batches([len(row) for row in rows], BATCH_TOKENS):
        best = iter(_best(weights, [rows[index] for index in batch], mask, words, top_k))
        for index in batch:
            masks = islice(best, rows[index].count(mask))
            filled[index] = [[Candidate(spell(i), i, p) for i, p in mask] for mask in masks]
    return filled[0] if single else filled


def _weights_of(model: Any) -> Weights:
    head = getattr(model, "_masked_lm", None)
    if head is None:
        raise ArgumentError("model", "a BertForMaskedLM", type(model).__name__)
    model.eval()
    view = model.bert.view()
    if isinstance(view, str):
        raise UnsupportedError(f"fill_mask: only transformers' own forward runs, as {view}.")
    return view, head()


def _rows(texts: list[str], tokenizer: Tokenizer, mask: int, longest: int) -> list[list[int]]:
    """The ids of each text."""
    check_texts(texts)
    rows, _ = tokenizer(texts)
    for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if mask not in row:
            got = repr(text if len(text) <= 40 else f"{text[:37]}...")
            raise ArgumentError(f"texts[{index}]", f"a text with {MASK}", got)
        if len(row) > longest:
            expected, got = f"at most {longest} tokens", str(len(row))
            raise ArgumentError(f"texts[{index}]", expected, got, "Shorten the text.")
    return rows


@torch.inference_mode()
def _best(
    weights: Weights, rows: list[list[int]], mask: int, words: int, top_k: int
) -> list[list[tuple[int, float]]]:
    """(id, probability) of the best words for each mask of the rows: one packed batch, no other token is scored."""
    bert, head = weights
    batch = pack_rows(rows, bert.device)
    states = encode_packed(bert, batch)[batch.input_ids == mask]
    scores = masked_lm_scores(head, states)[:, :words]
    values, indices = torch.topk(scores.float().softmax(-1), top_k)
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return [list(zip(*pair, strict=True)) for pair in pairs]
