"""What the automatic choice on a GPU says to the operations of the layers, before one call computes them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ... import dispatch
from ...dispatch import decisions
from .._contract import CONTRACTS
from .._cublaslt import NAME as CUBLASLT

Needs = tuple[tuple[bool, ...], ...]
Kind = tuple[str, bool | Needs, int]


def chosen(call: Any, grad: bool) -> tuple[tuple[int, ...], str | None]:
    """Which products of each layer are cuBLASLt's, as csrc/encoder/op.h has it (none where none is anywhere), and None;
    or nothing, and why the operations have to be called: another backend than these two is chosen for one of them.
    """
    asked = dispatch.backend()
    if asked not in ("auto", CUBLASLT):
        return (), None
    if asked == "auto" and (dispatch.is_batch_invariant() or not decisions.knows(call.x.device)):
        return (), None  # no table is asked, and the first in order is `cuda`
    bits: dict[Kind, int] = {}
    found = []
    for kinds in _kinds(call, grad):
        for kind in kinds:
            if kind not in bits:
                bits[kind], reason = _bits(call, *kind)
                if reason is not None:
                    return (), reason
        found.append(sum(bits[kind] for kind in kinds))
    if not any(found):
        return (), None
    of_products = call.weights[: 12 * call.layers]  # and their biases
    if any(tensor.data_ptr() % 16 for tensor in of_products):
        return (), "a weight does not begin at a multiple of 16 bytes, as cuBLASLt asks"
    return tuple(found), None


def _kinds(call: Any, grad: bool) -> Iterator[tuple[Kind, ...]]:
    """What the choice in each layer depends on: direction, what is saved or wanted, rows behind the attention."""
    wanted = _wanted(call) if grad else [None] * call.layers
    rows = [call.x.shape[0]] * call.layers
    if call.first_only:
        rows[-1] = call.cu_seqlens.shape[0] - 1
    for needs, count in zip(wanted, rows, strict=True):
        forward: Kind = "forward", needs is not None, count
        yield (forward, ("backward", needs, count)) if needs else (forward,)


def _bits(call: Any, direction: str, wants: bool | Needs, rows: int) -> tuple[int, str | None]:
    bits = 0
    for place, part in _parts(call, direction, wants, rows):
        name = dispatch.chosen_on_gpu(part) if dispatch.backend() == "auto" else CUBLASLT
        if name not in ("cuda", CUBLASLT):
            return 0, f"{name} is chosen for {part.operation}, {part.direction}"
        if name == CUBLASLT and dispatch.backends_of(part.operation)[name].supports(part):
            return 0, f"{name} refuses {part.operation}, {part.direction}"
        if name == CUBLASLT and place is not None:
            bits |= 1 << place + 4 * (direction == "backward")
    return bits, None


def _parts(
    call: Any, direction: str, wants: bool | Needs, rows: int
) -> Iterator[tuple[int | None, Any]]:
    """A layer's calls in one direction, each with the place of its product (attention has none)."""
    yield from _attending(call, direction, wants)
    yield from _rowwise(call, direction, wants, rows)


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


def _attending(call: Any, direction: str, wants: bool | Needs) -> Iterator[tuple[int | None, Any]]:
    wq, wk, wv = call.weights[: 3 * call.layers : call.layers]
    heads, (width, _) = call.num_heads, wq.shape
    qkv = like(call.x, call.x.shape[0], 3, heads, width // heads)
    starts, longest = call.cu_seqlens, call.max_seqlen
    of_attention = {"qkv": qkv, "cu_seqlens": starts, "max_seqlen": longest, "p": call.p[0]}
    if direction == "forward" or any(wants[0]):
        needs = {"needs": wants[0]} if direction == "backward" else {}
        weights = {"wq": wq, "wk": wk, "wv": wv, "num_heads": heads}
        yield 0, part("qkv_projection", direction, x=call.x, **weights, **needs)
        save = {"save": wants} if direction == "forward" else {}
        yield None, part("attention", direction, **of_attention, **save)


def _rowwise(
    call: Any, direction: str, wants: bool | Needs, rows: int
) -> Iterator[tuple[int | None, Any]]:
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
            x = like(call.x, rows, weight.shape[1])
            yield place, part(operation, direction, x=x, weight=weight, **more)


def part(operation: str, direction: str, **given: Any) -> Any:
    """A call of which only what a choice reads is there."""
    kind = getattr(CONTRACTS[operation], direction)
    return kind(*map(given.get, kind._fields))


def like(x: Tensor, *shape: int) -> Tensor:
    """Shape, dtype and device of an intermediate, without memory."""
    return x.detach().as_strided(shape, (0,) * len(shape))
