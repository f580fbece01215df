"""All layers of BERT in one call: L times the five operations of a layer, in inference.

Made of the other operations: their contracts say what is computed. Where it cannot serve, they are called one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch
from .._checks import check_matrix, check_sequences
from .._contract import through_library
from .._loading import Backends

_BACKENDS = Backends("encoder")


class _Call(NamedTuple):
    x: Tensor
    weights: Sequence[Tensor]
    eps: Sequence[float]
    cu_seqlens: Tensor
    max_seqlen: int
    num_heads: int
    first_only: bool
    states: bool

    @property
    def lead(self) -> Tensor:
        return self.x


def encoder(
    x: Tensor,
    weights: Sequence[Tensor],
    eps: Sequence[float],
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    num_heads: int,
    first_only: bool = False,
    states: bool = False,
) -> tuple[Tensor, Tensor | None] | None:
    """The last layer's output; bits are those of the five operations one by one.

    Args:
        x: [T,H] float32, bfloat16 or float16.
        weights: of all layers the first tensor, of all layers the second, ...: the weights of query, key, value [N,H],
            out [H,N], inner [F,H], outer [H,F]; their biases; weight and bias of the LN behind out [H] and of that
            behind outer [H]; dtype of x. All products' weights may be prepacked.
        eps: of each layer's two LN.
        cu_seqlens, max_seqlen: as in `attention`.
        num_heads: divides N.
        first_only: only each sequence's first row is wanted; what follows the last attention computes no other.
        states: each layer's output is wanted too.

    Returns: [T,H] ([B,H] with first_only), and [L,T,H] or None. Or None alone: no backend computes this call as one (a
    gradient or autocast, a trace, another backend by name, odd weights), which is recorded with the reason.
    Raises ArgumentError (shape, dtype, sequences), UnsupportedError (a prepacked weight of another instruction set).
    """
    call = _Call(x, weights, eps, cu_seqlens, max_seqlen, num_heads, first_only, states)
    if torch.compiler.is_compiling():
        return None
    reason = _reason(call)
    if reason is not None:
        dispatch.note("encoder", "forward", "by layers", {"cpu": reason})
        return None
    check_matrix("x", x)
    check_sequences(cu_seqlens, x.shape[0], x.device, max_seqlen)
    dispatch.note("encoder", "forward", "cpu", {})
    return _BACKENDS["cpu"].forward(*call)


def _reason(call: _Call) -> str | None:
    """Why the five operations have to be called, or None."""
    name = dispatch.backend()
    if name not in ("auto", "cpu"):
        return f"{name} was asked for"
    if through_library():
        return "something traces the call"
    if torch.is_autocast_enabled(call.x.device.type):
        return "autocast is on"
    if torch.is_grad_enabled() and any(t.requires_grad for t in chain((call.x,), call.weights)):
        return "a gradient is wanted"
    return _BACKENDS["cpu"].supports(call)
