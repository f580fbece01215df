"""The gradient of all layers: one autograd node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import dispatch
from ...errors import UnsupportedError

_READ = (*range(6), 12, 14)  # of a layer's sixteen tensors those that backward reads
_KEPT = ("cu_seqlens", "seeds", "example_ids")  # of a call's tensors, besides x and weights


def differentiable(call: Any, name: str, backend: Any) -> Tensor:
    """The last layer's output on the graph, by the backend, which records know by that name.

    Layers below the first with anything to differentiate save nothing, and backward ends above them.
    """
    first = 0 if call.x.requires_grad else _first_trained(call)
    if first:
        below = call.slice(0, first, first_only=False)
        call = call.slice(first, call.layers, x=backend.forward(below)[0])
    return _Layers.apply(call._replace(x=None, weights=()), name, backend, call.x, *call.weights)


def _first_trained(call: Any) -> int:
    weights, layers = call.weights, call.layers
    trained = (any(t.requires_grad for t in weights[i::layers]) for i in range(layers))
    return next(layer for layer, wanted in enumerate(trained) if wanted)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, name, backend, x, *weights):
        call = call._replace(x=x, weights=weights)
        out, kept, ctx.recorded = backend.forward_saving(call, ctx.needs_input_grad[3:])
        read = range(len(weights)) if call.recompute else _places(call.layers)
        ctx.save_for_backward(
            call.x,
            *(getattr(call, name) for name in _KEPT),
            *(weights[i] for i in read),
            *kept,
        )
        ctx.set_materialize_grads(False)
        ctx.call = call._replace(x=None, weights=(), **dict.fromkeys(_KEPT))
        ctx.read = read
        ctx.name, ctx.backend, ctx.scope, ctx.count = name, backend, dispatch.scope(), len(weights)
        return out

    @staticmethod
    def backward(ctx, dout):
        if dout is None:
            return (None,) * (ctx.count + 4)
        x, *rest = ctx.saved_tensors
        kept, rest = rest[: len(_KEPT)], rest[len(_KEPT) :]
        weights: list[Tensor | None] = [None] * ctx.count
        for place, weight in zip(ctx.read, rest, strict=False):
            weights[place] = weight
        call = ctx.call._replace(x=x, weights=weights, **dict(zip(_KEPT, kept, strict=True)))
        needs = ctx.needs_input_grad[3:]
        with dispatch.inside(ctx.scope):  # this may be autograd's own thread
            dispatch.note("encoder", "backward", ctx.name, {})
            with torch.no_grad():
                kept = rest[len(ctx.read) :]
                grads = ctx.backend.backward(call, dout, kept, needs, ctx.recorded)
        if torch.is_grad_enabled():  # create_graph: a gradient of these would be missing
            grads = _refusing(grads, (dout, x, *weights))
        return None, None, None, *grads


def _places(layers: int) -> list[int]:
    return [which * layers + layer for which in _READ for layer in range(layers)]


class _NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, *_):
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        raise UnsupportedError(
            "encoder cannot be differentiated twice (double backward): its backward saves nothing for that. Compute "
            "the term that needs second derivatives with plain torch modules."
        )


def _refusing(grads: Sequence[Tensor | None], of: Sequence[Tensor | None]) -> list[Tensor | None]:
    of = [tensor for tensor in of if tensor is not None and tensor.requires_grad]
    return [None if grad is None else _NoSecond.apply(grad, *of) for grad in grads]
