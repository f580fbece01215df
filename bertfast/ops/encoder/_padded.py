"""A padded batch through embedding and all layers in one call on a GPU, which reads the mask there.

So the host waits for nothing, and what is launched, and every bit of it, depends on the batch's shape alone: a CUDA
graph recorded of one mask serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch, extension
from ..._scope import GRAPH_TOKENS, scope
from . import Call, _cuda_padded, reason_of
from ._choices import chosen, like, part


class Tokens(NamedTuple):
    """A padded batch: input_ids [B,S] int64 or int32, the others [B,S] or None (all real, columns, zeros)."""

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    token_type_ids: Tensor | None


class Tables(NamedTuple):
    """What `embedding` reads, by its names."""

    word: Tensor
    position: Tensor
    segment: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    eps: float


def padded_encoder(
    tokens: Tokens,
    tables: Tables,
    weights: Sequence[Tensor],
    eps: Sequence[float],
    *,
    num_heads: int,
    first_only: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """The last layer's output of a padded batch, without dropout and gradient; other arguments as of `encoder`.

    Returns: [B,S,H], zeros at padding (None with first_only); each sequence's first real row [B,H], zeros where there
    is none; cu_seqlens [B+1] int32. Or None: the caller is to pack, as a batch is large and no graph was recorded of
    it, or not all is the backend cuda's.
    """
    if torch.compiler.is_compiling() or not extension.on_gpu(tables.position):
        return None
    batch, length = tokens.input_ids.shape
    places = batch * length
    large = places > max(scope().graph_tokens, GRAPH_TOKENS)  # packing is worth a wait
    if not places or (large and not _cuda_padded.is_recorded(places)):
        return None
    floats = [*tables[:-1], *weights]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in floats):
        return None
    x = like(tables.position, places, tables.position.shape[1])
    starts = like(tokens.input_ids, batch + 1)
    call = Call(x, weights, eps, starts, length, num_heads, first_only)
    if reason_of(call, "cuda", False) or not _embeds(tables, x):
        return None
    theirs, reason = chosen(call, False)
    if theirs or reason:
        return None
    found = _cuda_padded.forward(tokens, tables, call, only_recorded=large)
    if found is not None:
        dispatch.note("embedding", "forward", "cuda", {})
        dispatch.note("encoder", "forward", "cuda", {})
    return found


def _embeds(tables: Tables, x: Tensor) -> bool:
    """Whether the backend cuda is the one for the embedding, and may read its tensors as they lie."""
    word, hidden = tables.word, x.shape[1]
    plain = all(tensor.is_contiguous() for tensor in tables[:-1])
    fits = word.shape[1:] == tables.segment.shape[1:] == tables.ln_weight.shape == (hidden,)
    alike = {(tensor.dtype, tensor.device) for tensor in tables[:-1]} == {(x.dtype, x.device)}
    if not (plain and fits and alike and tables.ln_bias.shape == (hidden,)):
        return False
    ids = like(x, x.shape[0])
    given = {"position_ids": ids, "position": tables.position, "word": word, "p": 0.0}
    call = part("embedding", "forward", ln_weight=tables.ln_weight, save=False, **given)
    if dispatch.backend() == "auto" and not dispatch.is_batch_invariant():
        return dispatch.chosen_on_gpu(call) == "cuda"
    return dispatch.backends_of("embedding")["cuda"].supports(call) is None
