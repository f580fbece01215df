"""dropout(LN(word[id] + position[p] + segment[s])): what enters the first layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...errors import ArgumentError
from .. import _autograd
from .._checks import check_dropout, check_indices, check_like, check_matrix, check_sequences

dispatch.register("embedding", __name__)


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
    padding_idx: int = -1,
) -> Tensor:
    """z = word[input_ids] (or inputs_embeds) + position[position_ids] + segment[token_type_ids];
    dropout((z - mean(z)) / √(var(z) + eps) · ln_weight + ln_bias), per row. Statistics and sums in
    fp32.

    Args:
        input_ids: [T] int64, with `word` [V,H]; or both None, with
        inputs_embeds: [T,H]; any strides.
        position_ids, token_type_ids: [T] int64.
        position: [P,H]; segment: [G,H]; ln_weight, ln_bias: [H]. All floating-point tensors have
            one dtype.
        eps: added to the variance (the biased one).
        p: probability of dropping; where it is not 0 `seed` (int64 [1]) and `cu_seqlens` (int32
            [B+1]) are needed.
        padding_idx: the row of `word` that gets gradient 0; negative for none.

    Returns: [T,H], the dtype of `position`. Differentiable once; backward keeps mean and rstd
    (fp32) and gathers again.
    Raises ArgumentError (shape, dtype, device; on the CPU an index out of its table),
    UnsupportedError (a form asked for by name refuses).
    """
    save = _autograd.wants_grad(word, inputs_embeds, position, segment, ln_weight, ln_bias)
    args = (
        input_ids,
        word,
        inputs_embeds,
        position_ids,
        position,
        token_type_ids,
        segment,
        ln_weight,
        ln_bias,
    )
    args = (*args, eps, p, seed, cu_seqlens, padding_idx, save)
    if save or _autograd.through_library():
        return _autograd.differentiable("embedding", *args)[0]
    return _forward(*args)[0]


def _forward(*args):
    input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment = args[:7]
    p, seed, cu_seqlens = args[10:13]
    check_matrix("position", position)
    rows, hidden = position.shape
    _check_source(input_ids, word, inputs_embeds)
    source, name = (inputs_embeds, "inputs_embeds") if input_ids is None else (word, "word")
    check_matrix(name, source)
    check_like(
        "position",
        position,
        (name, source, (source.shape[0], hidden)),
        ("segment", segment, (*segment.shape[:1], hidden)),
        ("ln_weight", args[7], (hidden,)),
        ("ln_bias", args[8], (hidden,)),
    )
    tokens = source.shape[0] if input_ids is None else input_ids.numel()
    if input_ids is not None:
        check_indices("input_ids", input_ids, tokens, word.shape[0], position.device)
    check_indices("position_ids", position_ids, tokens, rows, position.device)
    check_indices("token_type_ids", token_type_ids, tokens, segment.shape[0], position.device)
    check_dropout(p, seed, position.device)
    if p > 0:
        check_sequences(cu_seqlens, tokens, position.device)
    return dispatch.choose("embedding", "forward", args).forward(*args)


def _check_source(input_ids, word, inputs_embeds):
    if (input_ids is None) == (inputs_embeds is None):
        got = "both" if inputs_embeds is not None else "neither"
        raise ArgumentError("input_ids", "either input_ids or inputs_embeds", got)
    if (input_ids is None) != (word is None):
        raise ArgumentError("word", "a table with input_ids and None without", "the other")


def _fwd(*args):
    results = _forward(*args)
    return results if args[-1] else (results[0], *_autograd.nothing_saved(args[4])[1:])


def _fwd_fake(*args):
    position_ids, position, save = args[3], args[4], args[-1]
    out = position.new_empty(position_ids.shape[0], position.shape[1])
    if not save:
        return out, *_autograd.nothing_saved(position)[1:]
    mean = position.new_empty(
        position_ids.shape[0], dtype=_autograd.statistics_dtype(position.dtype)
    )
    return out, mean, torch.empty_like(mean)


def _bwd(*args):
    return _autograd.run_backward("embedding", *args)


def _bwd_fake(
    dout,
    input_ids,
    word,
    inputs_embeds,
    position_ids,
    position,
    token_type_ids,
    segment,
    ln_weight,
    *rest,
):
    return _autograd.fake_gradients(
        dout, rest[-1], word, inputs_embeds, position, segment, ln_weight, ln_weight
    )


def _saved(inputs, outputs):
    _, p, seed, cu_seqlens, padding_idx, _ = inputs[9:]
    return *inputs[:8], *outputs[1:], p, seed, cu_seqlens, padding_idx


_SOURCES = (
    "Tensor? input_ids, Tensor? word, Tensor? inputs_embeds, Tensor position_ids, Tensor position, "
    "Tensor token_type_ids, Tensor segment, Tensor ln_weight, "
)
_DROPOUT = "float p, Tensor? seed, Tensor? cu_seqlens, SymInt padding_idx, "
_autograd.define(
    f"embedding_fwd({_SOURCES}Tensor ln_bias, float eps, {_DROPOUT}bool save) -> (Tensor, Tensor, Tensor)",
    _fwd,
    _fwd_fake,
)
_autograd.define(
    f"embedding_bwd(Tensor dout, {_SOURCES}Tensor mean, Tensor rstd, {_DROPOUT}bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
_autograd.differentiate("embedding", wanted=(1, 2, 4, 6, 7, 8), arguments=_saved)
