"""dropout(LN(word[id] + position[p] + segment[s])): what enters the first layer."""

from __future__ import annotations

from torch import Tensor

from ...errors import ArgumentError
from .._checks import (
    check_dropout,
    check_example_ids,
    check_indices,
    check_like,
    check_matrix,
    check_sequences,
)
from .._contract import Contract
from .._formulas import statistics_dtype


def embedding(
    input_ids: Tensor | None,
    word: Tensor | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor,
    position: Tensor,
    token_type_ids: Tensor,
    segment: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    example_ids: Tensor | None = None,
    padding_idx: int = -1,
) -> Tensor:
    """z = word[input_ids] (or inputs_embeds) + position[position_ids] + segment[token_type_ids];
    dropout((z - mean(z)) / √(var(z) + eps) · ln_weight + ln_bias), per row. Statistics and sums in fp32.

    Args:
        input_ids: [T] int64, with `word` [V,H]; or both None, with
        inputs_embeds: [T,H]; any strides.
        position_ids, token_type_ids: [T] int64.
        position: [P,H]; segment: [G,H]; ln_weight, ln_bias: [H]. All floating-point tensors have one dtype.
        eps: added to the variance (the biased one).
        p: probability of dropping; where it is not 0 `seed` (int64 [1]) and `cu_seqlens` (int32 [B+1]) are needed.
        example_ids: [B] int64, read where p is not 0: dropout counts a sequence by its id's low 32 bits, so that it
            drops the same in any batch; None: by the sequence's index.
        padding_idx: the row of `word` that gets gradient 0; negative for none.

    Returns: [T,H], the dtype of `position`. Differentiable once; backward keeps mean and rstd (fp32) and gathers again.
    Raises ArgumentError (shape, dtype, device; on the CPU an index out of its table),
    UnsupportedError (a backend asked for by name refuses).
    """
    return _CONTRACT(
        input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment, ln_weight, ln_bias, eps, p,
        seed, cu_seqlens, example_ids, padding_idx,
    )  # fmt: skip


def _check(a):
    position, segment = a.position, a.segment
    check_matrix("position", position)
    rows, hidden = position.shape
    _check_source(a.input_ids, a.word, a.inputs_embeds)
    by_ids = a.input_ids is not None
    source, name = (a.word, "word") if by_ids else (a.inputs_embeds, "inputs_embeds")
    check_matrix(name, source)
    check_like(
        "position",
        position,
        (name, source, (source.shape[0], hidden)),
        ("segment", segment, (*segment.shape[:1], hidden)),
        ("ln_weight", a.ln_weight, (hidden,)),
        ("ln_bias", a.ln_bias, (hidden,)),
    )
    tokens, device = a.input_ids.numel() if by_ids else source.shape[0], position.device
    if by_ids:
        check_indices("input_ids", a.input_ids, tokens, source.shape[0], device)
    check_indices("position_ids", a.position_ids, tokens, rows, device)
    check_indices("token_type_ids", a.token_type_ids, tokens, segment.shape[0], device)
    check_dropout(a.p, a.seed, device)
    if a.p > 0:
        check_sequences(a.cu_seqlens, tokens, device)
        check_example_ids(a.example_ids, a.cu_seqlens)


def _check_source(input_ids, word, inputs_embeds):
    if (input_ids is None) == (inputs_embeds is None):
        got = "both" if inputs_embeds is not None else "neither"
        raise ArgumentError("input_ids", "either input_ids or inputs_embeds", got)
    if (input_ids is None) != (word is None):
        raise ArgumentError("word", "a table with input_ids and None without", "the other")


def _shapes(a):
    tokens, dtype = a.position_ids.shape[0], a.position.dtype
    statistics = (tokens,), statistics_dtype(dtype)
    return ((tokens, a.position.shape[1]), dtype), statistics, statistics


_CONTRACT = Contract(
    "embedding",
    "Tensor? input_ids, Tensor? word, Tensor? inputs_embeds, Tensor position_ids, Tensor position, "
    "Tensor token_type_ids, Tensor segment, Tensor ln_weight, Tensor ln_bias, float eps, float p, Tensor? seed, "
    "Tensor? cu_seqlens, Tensor? example_ids, SymInt padding_idx",
    lead="position",
    check=_check,
    results=("out", "mean", "rstd"),
    shapes=_shapes,
    saved=(
        *("input_ids", "word", "inputs_embeds", "position_ids", "position", "token_type_ids"),
        *("segment", "ln_weight", "mean", "rstd", "p", "seed", "cu_seqlens"),
        *("example_ids", "padding_idx"),
    ),
    gradients={
        **dict.fromkeys(("word", "inputs_embeds", "position", "segment", "ln_weight")),
        "ln_bias": lambda b: b.ln_weight,
    },
)
