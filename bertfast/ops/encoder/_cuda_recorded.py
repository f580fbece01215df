"""Training by CUDA graphs, where asked for: forward and backward of all layers, one graph each (`.._graphs`).

What backward reads lies in an arena from the forward on. Its calls share it, so one at a time has it, until autograd
lets go of what it saved: a forward that comes before that is launched, and so is a backward that finds a tensor
elsewhere than it was recorded (`saved_tensors_hooks`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import dispatch, extension
from ..._scope import scope
from .. import _graphs
from . import cpu

_INPUTS = ("x", "cu_seqlens", "seeds", "example_ids")
# the fields that tell of them
_MOVES = ("x", "cu_seqlens", "attention_dropout", "out_dropout", "dropout")


class Recorded:
    """The two graphs of a call, and the places of what goes in and comes out."""

    def __init__(self, call: Any, needs: Sequence[bool], stream: int, arena: _graphs.Arena):
        x, self.sizes, self.needs = call.x, cpu.sizes_of(call), needs
        self.tokens = self.sizes["tokens"]
        given = _inputs(call)
        rows = self.sizes["sequences" if call.first_only else "tokens"]
        out = _like(x, rows, self.sizes["hidden"])
        flat = _like(x, cpu.gradient_elements(call.layers, self.sizes, needs[1:]))
        self.pieces = [_like(x, size, dtype=torch.uint8) for size in cpu.kept_bytes(call)]
        parts = [*given.values(), out, out, x, flat, *self.pieces]
        starts = _graphs.places_of([part.nbytes for part in parts])
        self.starts = starts[len(given) + 4 :]
        where = extension.where(x, stream)
        base = arena.reserve(starts[-1] + _workspace(call, needs, where), x)
        where["gpu"]["workspace"] = base + starts[-1]
        views = [
            _graphs.view_as(arena.memory, start, part)
            for start, part in zip(starts, parts, strict=False)
        ]
        self.arena, self.memory, self.stream = arena, arena.memory, stream
        self.weights = extension.pointers(call.weights)
        self.inputs = dict(zip(given, views, strict=False))
        self.out, self.dout, dx, self.flat, *kept = views[len(given) :]
        self.dx = dx if needs[0] else None
        grads = cpu.gradients_in(self.flat, call.layers, self.sizes, needs[1:])
        own = call._replace(**self.inputs)
        fields = _fields(own, self.out, self.dout, kept, [self.dx, *grads])
        self.forwards, self.backwards = (
            extension.record(name, {**told, **where}) for name, told in fields.items()
        )

    def forward(self, call: Any) -> tuple[Tensor, list[Tensor]]:
        """The result, and the memory of what backward reads, which is in use as long as it lives."""
        for name, place in self.inputs.items():
            place.copy_(getattr(call, name))
        extension.replay(self.forwards, self.stream)
        lease = self.memory.data  # which no later write makes stale for autograd
        self.arena.user = weakref.ref(lease)
        return self.out.clone(), [lease]

    def backward(self, call: Any, dout: Tensor, lease: Tensor) -> list[Tensor | None] | None:
        """As `cpu.backward`; None where what it reads is elsewhere, or launches are to go elsewhere."""
        moved = lease.data_ptr() != self.memory.data_ptr() or any(
            weight is not None and weight.data_ptr() != address
            for weight, address in zip(call.weights, self.weights, strict=True)
        )
        with extension.current_stream(dout.device) as stream:
            if moved or stream != self.stream or extension.cuda.is_capturing(stream):
                return None
            with _graphs.LOCK:
                self.dout.copy_(dout)
                extension.replay(self.backwards, stream)
                dx = None if self.dx is None else self.dx.clone()
                flat = self.flat.clone()
        dispatch.note("encoder", "graph", "cuda", {})
        return [dx, *cpu.gradients_in(flat, call.layers, self.sizes, self.needs[1:])]

    def kept(self, lease: Tensor) -> list[Tensor]:
        """What `cpu.forward_saving` gives: parts of a lease, or of its copy."""
        return [
            _graphs.view_as(lease, start, piece)
            for start, piece in zip(self.starts, self.pieces, strict=False)
        ]


def forward(call: Any, needs: Sequence[bool]) -> tuple[Tensor, list[Tensor], Recorded] | None:
    """Result, lease and what is recorded; None where the call is to be launched.

    Args:
        needs: which gradients are wanted, of x, then of each weight.
    """
    here, x = scope(), call.x
    if not (here.training_graphs and here.graph_tokens):
        return None
    with extension.current_stream(x.device) as stream:
        if extension.cuda.is_capturing(stream):
            return None
        sizes = cpu.sizes_of(call)
        told = {**cpu.fields_of(call, x, sizes), **extension.where(x, stream)}
        told = [value for name, value in told.items() if name not in _MOVES]
        key = _graphs.key_of(
            "encoder", "training", x.device, call.p, list(_inputs(call)), needs, *told
        )
        place = (x.device, stream, "training")
        with _graphs.LOCK:
            if _graphs.arena_at(place).in_use():
                return None
            found = _graphs.find(
                key, sizes["tokens"], place, lambda arena: Recorded(call, needs, stream, arena)
            )
            if found is None:
                return None
            result = found.forward(call)
    dispatch.note("encoder", "graph", "cuda", {})
    return *result, found


def _inputs(call: Any) -> dict[str, Tensor]:
    """What each call brings, by name."""
    drops = any(call.p)  # else seeds and numbers are not read
    found = {name: getattr(call, name) for name in _INPUTS[: 4 if drops else 2]}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _like(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or x.dtype, device="meta")


def _fields(
    call: Any, out: Tensor, dout: Tensor, kept: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> dict[str, dict[str, Any]]:
    """Of both kernels."""
    return {
        "encoder_fwd": cpu.forward_fields(call, out, kept),
        "encoder_bwd": cpu.backward_fields(call, dout, kept, grads),
    }


def _workspace(call: Any, needs: Sequence[bool], where: dict[str, Any]) -> int:
    """Bytes, the more of both kernels', which read addresses here only as wanted or not: those of x stand for all."""
    x, pieces = call.x, len(cpu.kept_bytes(call))
    fields = _fields(call, x, x, [x] * pieces, [x if need else None for need in needs])
    return max(extension.workspace_bytes(name, {**told, **where}) for name, told in fields.items())
