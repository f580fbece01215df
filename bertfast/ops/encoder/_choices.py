"""What the automatic choice on a GPU says to the operations of the layers, before one call computes them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ... import dispatch
from ...dispatch import decisions
from .._contract import CONTRACTS

Needs = tuple[tuple[bool, ...], ...]


def elsewhere(call: Any, grad: bool) -> str | None:
    """Which operation of a layer another backend than `cuda` is chosen for, or None."""
    if dispatch.backend() != "auto" or dispatch.is_batch_invariant():  # no table is asked
        return None
    if not decisions.knows(call.x.device):  # the first in order is `cuda`
        return None
    for part in _parts(call, grad):
        chosen = dispatch.chosen_on_gpu(part)
        if chosen != "cuda":
            return f"{chosen} is chosen for {part.operation}, {part.direction}"
    return None


def _parts(call: Any, grad: bool) -> Iterator[Any]:
    """A call of each kind that the layers make."""
    wanted = _wanted(call) if grad else [None] * call.layers
    rows = [call.x.shape[0]] * call.layers
    if call.first_only:
        rows[-1] = call.cu_seqlens.shape[0] - 1
    kinds = [
        ("forward", needs is not None, count) for needs, count in zip(wanted, rows, strict=True)
    ]
    kinds += [
        ("backward", needs, count) for needs, count in zip(wanted, rows, strict=True) if needs
    ]
    for direction, wants, count in dict.fromkeys(kinds):
        yield from _attending(call, direction, wants)
        yield from _rowwise(call, direction, wants, count)


def _wanted(call: Any) -> list[Needs | None]:
    """Of each layer what its four products want gradients of; None below the lowest with anything to differentiate."""
    trained, found = [tensor.requires_grad for tensor in call.weights], []
    below = call.x.requires_grad
    for layer in range(call.layers):
        t = trained[layer :: call.layers]
        if not below and not any(t):
            found.append(None)
            continue
        qkv = below, *t[:3], *t[6:9]
        out = any(qkv), t[3], t[9], below, t[12], t[13]
        inner = any(out), t[4], t[10]
        found.append((qkv, out, inner, (any(inner), t[5], t[11], any(out), t[14], t[15])))
        below = True
    return found


def _attending(call: Any, direction: str, wants: bool | Needs) -> Iterator[Any]:
    wq, wk, wv = call.weights[: 3 * call.layers : call.layers]
    heads, (width, _) = call.num_heads, wq.shape
    qkv = _like(call.x, call.x.shape[0], 3, heads, width // heads)
    starts, longest = call.cu_seqlens, call.max_seqlen
    of_attention = {"qkv": qkv, "cu_seqlens": starts, "max_seqlen": longest, "p": call.p[0]}
    if direction == "forward" or any(wants[0]):
        needs = {"needs": wants[0]} if direction == "backward" else {}
        yield _part(
            "qkv_projection", direction, x=call.x, wq=wq, wk=wk, wv=wv, num_heads=heads, **needs
        )
        save = {"save": wants} if direction == "forward" else {}
        yield _part("attention", direction, **of_attention, **save)


def _rowwise(call: Any, direction: str, wants: bool | Needs, rows: int) -> Iterator[Any]:
    out, inner, outer = (call.weights[which * call.layers] for which in (3, 4, 5))
    norm = call.weights[12 * call.layers]
    parts = (
        ("linear_layernorm", out, {"ln_weight": norm, "p": call.p[1]}),
        ("linear_gelu", inner, {}),
        ("linear_layernorm", outer, {"ln_weight": norm, "p": call.p[2]}),
    )
    for place, (operation, weight, more) in enumerate(parts, 1):
        wanted = wants if direction == "forward" else wants[place]
        if direction == "forward" or any(wanted):
            more = {**more, "save" if direction == "forward" else "needs": wanted}
            x = _like(call.x, rows, weight.shape[1])
            yield _part(operation, direction, x=x, weight=weight, **more)


def _part(operation: str, direction: str, **given: Any) -> Any:
    """A call of which only what a choice reads is there."""
    kind = getattr(CONTRACTS[operation], direction)
    return kind(*map(given.get, kind._fields))


def _like(x: Tensor, *shape: int) -> Tensor:
    """Shape, dtype and device of an intermediate, without memory."""
    return x.detach().as_strided(shape, (0,) * len(shape))
