"""A padded batch through embedding and all layers in one call on a GPU, which reads the mask there.

So the host waits for nothing, and what is launched, and every bit of it, depends on the batch's shape alone: a CUDA
graph recorded of one mask serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch
from ..._scope import GRAPH_TOKENS, scope
from . import Call, _cuda_padded, reason_of
from ._choices import chosen, like, part


class Tokens(NamedTuple):
    """A padded batch: input_ids [B,S] int64 or int32, mask [B,S] or None (all are real), positions and segments [B,S],
    [1,S] or None (columns, zeros).
    """

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

    Bits follow from [B,S], so from how wide the batch is padded, unless `batch_invariant` holds.

    Returns: [B,S,H], zeros at padding (None with first_only); each sequence's first real row [B,H], which means nothing
    where there is none; cu_seqlens [B+1] int32. Or None: the caller is to pack, for a reason that is recorded.
    """
    batch, length = tokens.input_ids.shape
    places = batch * length
    x = like(tables.position, places, tables.position.shape[1])
    starts = like(tokens.input_ids, batch + 1)
    call = Call(x, weights, eps, starts, length, num_heads, first_only)
    # packing is worth a wait then, but while somebody records nothing can be waited for
    large = places > max(scope().graph_tokens, GRAPH_TOKENS) and not _cuda_padded.is_capturing(x)
    reason, found = _reason(call, tables, large), None
    if reason is None:
        found = _cuda_padded.forward(tokens, tables, call, only_recorded=large)
        reason = _LARGE if found is None else None
    if reason is not None:
        dispatch.note("encoder", "padded", None, {"cuda": reason})
        return None
    dispatch.note("embedding", "forward", "cuda", {})
    dispatch.note("encoder", "forward", "cuda", {})
    return found


_LARGE = f"a batch of more than {GRAPH_TOKENS} places, which no capture() recorded"


def _reason(call: Call, tables: Tables, large: bool) -> str | None:
    """Why the batch has to be packed, or None."""
    x = call.x
    if not x.shape[0]:
        return "no tokens"
    if large and not _cuda_padded.is_recorded(x.shape[0]):
        return _LARGE
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tables[:-1], *call.weights)):
        return "a gradient is wanted"
    reason = reason_of(call, "cuda", False)
    if reason is not None:
        return reason
    theirs, reason = chosen(call, False)
    if theirs:
        return "cuBLASLt computes products of all rows"
    return reason or _embedding_reason(tables, x)


def _embedding_reason(tables: Tables, x: Tensor) -> str | None:
    """Why the backend cuda is not the one for the embedding, or may not read its tensors as they lie; or None."""
    word, hidden = tables.word, x.shape[1]
    fits = word.shape[1:] == tables.segment.shape[1:] == tables.ln_weight.shape == (hidden,)
    alike = {(tensor.dtype, tensor.device) for tensor in tables[:-1]} == {(x.dtype, x.device)}
    plain = all(tensor.is_contiguous() for tensor in tables[:-1])
    if not (plain and fits and alike and tables.ln_bias.shape == (hidden,)):
        return "the tables are not alike, or not contiguous"
    given = {"position_ids": like(x, x.shape[0]), "position": tables.position, "word": word}
    call = part("embedding", "forward", ln_weight=tables.ln_weight, p=0.0, save=False, **given)
    if dispatch.backend() == "auto" and not dispatch.is_batch_invariant():
        name = dispatch.chosen_on_gpu(call)
        return None if name == "cuda" else f"{name} is chosen for embedding, forward"
    return dispatch.backends_of("embedding")["cuda"].supports(call)
