"""All layers of BERT in one call: L times the five operations of a layer, and their gradients.

Made of the other operations: their contracts say what is computed. Where it cannot serve, they are called one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch, extension
from ...extension import contiguous
from .._checks import check_dropout, check_example_ids, check_matrix, check_sequences
from .._contract import through_library
from .._cublaslt import NAME as CUBLASLT
from .._loading import Backends
from ._choices import chosen
from ._training import differentiable

_BACKENDS = Backends("encoder")
OF_A_LAYER = 16  # tensors


class Call(NamedTuple):
    """The arguments of `encoder`, and what follows from their number."""

    x: Tensor
    weights: Sequence[Tensor]
    eps: Sequence[float]
    cu_seqlens: Tensor
    max_seqlen: int
    num_heads: int
    first_only: bool = False
    states: bool = False
    p: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seeds: Tensor | None = None
    example_ids: Tensor | None = None
    recompute: bool = False
    cublaslt: Sequence[int] = ()  # see `_choices.chosen`

    @property
    def lead(self) -> Tensor:
        return self.x

    @property
    def layers(self) -> int:
        return len(self.weights) // OF_A_LAYER

    def slice(self, first: int, last: int, **changes) -> Call:
        """The layers first to last - 1 of it."""
        weights, seeds = self.weights, self.seeds
        parts = (weights[i + first : i + last] for i in range(0, len(weights), self.layers))
        return self._replace(
            weights=list(chain.from_iterable(parts)),
            eps=self.eps[2 * first : 2 * last],
            seeds=None if seeds is None else seeds[first:last],
            cublaslt=self.cublaslt[first:last],
            **changes,
        )


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
    p: tuple[float, float, float] = (0.0, 0.0, 0.0),
    seeds: Tensor | None = None,
    example_ids: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor | None] | None:
    """The last layer's output; bits are those of the five operations one by one, and so are those of gradients.

    Args:
        x: [T,H] float32, bfloat16 or float16.
        weights: of all layers the first tensor, of all layers the second, ...: the weights of query, key, value [N,H],
            out [H,N], inner [F,H], outer [H,F]; their biases; weight and bias of the LN behind out [H] and of that
            behind outer [H]; dtype of x. All products' weights may be prepacked, then without a gradient.
        eps: of each layer's two LN.
        cu_seqlens, max_seqlen: as in `attention`.
        num_heads: divides N.
        first_only: only each sequence's first row is wanted; what follows the last attention computes no other.
        states: each layer's output is wanted too, without a gradient.
        p: of dropping attention's probabilities, the output of `out`, and that of `outer`.
        seeds: [L,3] int64 for them, needed where any p is not 0.
        example_ids: [B] int64 or None, by which dropout counts the sequences; as in `attention`.
        recompute: keep each layer's output alone for backward, which computes the rest again (gradient checkpointing;
            Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016). Bits stay the same.

    Returns: [T,H] ([B,H] with first_only), and [L,T,H] or None. Or None alone: no backend computes this call as one
    (autocast, a trace, another backend by name, odd weights), which is recorded with the reason. Differentiable once.
    Raises ArgumentError (shape, dtype, sequences), UnsupportedError (a prepacked weight of another instruction set).
    """
    call = Call(
        x, weights, eps, cu_seqlens, max_seqlen, num_heads, first_only, states, p, seeds, example_ids, recompute,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        return None
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in chain((x,), weights))
    name = "cuda" if extension.on_gpu(x) else "cpu"
    reason = reason_of(call, name, grad)
    if reason is None and name == "cuda":
        theirs, reason = chosen(call, grad)
        call = call._replace(cublaslt=theirs)
    if reason is not None:
        dispatch.note("encoder", "forward", "by layers", {name: reason})
        return None
    check_matrix("x", x)
    check_sequences(cu_seqlens, x.shape[0], x.device, max_seqlen)
    for probability in p:
        check_dropout(probability, seeds, x.device, (call.layers, 3))
    if any(p):
        check_example_ids(example_ids, cu_seqlens)
    x, cu_seqlens, seeds, example_ids = contiguous(x, cu_seqlens, seeds, example_ids)
    call = call._replace(x=x, cu_seqlens=cu_seqlens, seeds=seeds, example_ids=example_ids)
    ran = CUBLASLT if call.cublaslt else name
    dispatch.note("encoder", "forward", ran, {})
    if not grad:
        return _BACKENDS[name].forward(call)
    return differentiable(call, ran, _BACKENDS[name]), None


def reason_of(call: Call, name: str, grad: bool) -> str | None:
    """Why the five operations have to be called, or None: the backend of that name computes them in one call."""
    asked = dispatch.backend()
    if asked not in ("auto", name) and (name, asked) != ("cuda", CUBLASLT):
        return f"{asked} was asked for"
    if through_library():
        return "something traces the call"
    if torch.is_autocast_enabled(call.x.device.type):
        return "autocast is on"
    if grad and call.states:
        return "every layer's output is wanted, with a gradient"
    reason = _BACKENDS[name].supports(call)
    if reason is None and grad and torch.overrides.has_torch_function((call.x, *call.weights)):
        return "a gradient is wanted of what are no plain tensors"
    return reason
