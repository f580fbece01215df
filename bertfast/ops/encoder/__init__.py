"""All layers of BERT in one call: L times the five operations of a layer, in inference."""

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

OF_A_LAYER = 16  # tensors: weight, bias of query, key, value, out, its LN, inner, outer, its LN


class EncoderCall(NamedTuple):
    """The arguments of the operation.

    Fields:
        x: [T,H] float32, bfloat16 or float16.
        weights: `OF_A_LAYER` a layer, of all layers one after the other, dtype of x: query, key, value [N,H],
            out [H,N], its LN [H], inner [F,H], outer [H,F], its LN [H], each weight followed by its bias. Products'
            weights may be prepacked.
        eps: of each layer's two LN.
        cu_seqlens, max_seqlen: as in `attention`; the last entry is T.
        num_heads: divides N.
        first_only: only each sequence's first row is wanted; what follows the last attention computes no other.
        states: each layer's output is wanted too.
    """

    x: Tensor
    weights: Sequence[Tensor]
    eps: Sequence[float]
    cu_seqlens: Tensor
    max_seqlen: int
    num_heads: int
    first_only: bool = False
    states: bool = False
    operation = "encoder"
    direction = "forward"

    @property
    def lead(self) -> Tensor:
        return self.x


dispatch.register("encoder", Backends("encoder"))


def encoder(call: EncoderCall) -> tuple[Tensor, Tensor | None] | None:
    """The last layer's output [T,H] ([B,H] with first_only), and each layer's [L,T,H] if wanted; bits are those of the
    five operations one by one.

    None where no backend computes the call as one: then these have to be called. The reason is recorded.

    Raises ArgumentError (shape, dtype, sequences), UnsupportedError (a prepacked weight of another instruction set).
    """
    reason = _reason(call)
    name, found = dispatch.backend(), None
    if reason is None:
        found = dispatch.backends_of("encoder")["cpu"]
        reason = f"{name} was asked for" if name not in ("auto", "cpu") else found.supports(call)
    if reason is not None:
        dispatch.note("encoder", "forward", "layer by layer", {"cpu": reason})
        return None
    check_matrix("x", call.x)
    check_sequences(call.cu_seqlens, call.x.shape[0], call.x.device, call.max_seqlen)
    dispatch.note("encoder", "forward", "cpu", {})
    return found.forward(*call)


def _reason(call: EncoderCall) -> str | None:
    """What in the moment asks for the five operations."""
    if through_library():
        return "something traces the call"
    if torch.is_autocast_enabled(call.x.device.type):
        return "autocast is on"
    if torch.is_grad_enabled() and any(t.requires_grad for t in chain((call.x,), call.weights)):
        return "a gradient is wanted"
    return None
