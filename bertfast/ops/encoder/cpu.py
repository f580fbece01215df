"""The C++ backend of this operation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import extension
from .._weights import PrepackedParameter

PRODUCTS, OF_A_LAYER = 6, 16  # weights of products, tensors


def supports(call) -> str | None:
    """None where the C++ backend computes this call, else the reason.

    Addresses go to C++, and a weight may have become another tensor since the last call: each is looked at, in few
    passes over all.
    """
    x, weights = call.x, call.weights
    layers = len(weights) // OF_A_LAYER
    if reason := extension.refuses(x):
        return reason
    if not layers or not x.shape[0]:
        return "no layers" if x.shape[0] else "no tokens"
    if call.first_only and call.states:
        return "every layer's output is wanted, of the last one first rows only"
    products, vectors = weights[: PRODUCTS * layers], weights[PRODUCTS * layers :]
    kinds = set(map(type, products))
    if PrepackedParameter in kinds:
        if len(kinds) > 1:
            return "some weights are prepacked, others are not"
        shapes = [(weight.packed.n, weight.packed.k) for weight in products]
        products = _buffers(products)
    else:
        shapes = [weight.shape for weight in products]
    hidden, width, inner = x.shape[1], shapes[0][0], shapes[4 * layers][0]
    rows = ((width, hidden),) * 3 + ((hidden, width), (inner, hidden), (hidden, inner))
    sizes = (width,) * 3 + (hidden, inner) + (hidden,) * 5
    alike = (
        shapes == [row for row in rows for _ in range(layers)]
        and list(map(Tensor.numel, vectors)) == [size for size in sizes for _ in range(layers)]
        and width % call.num_heads == 0
    )
    if not alike:
        return "its layers are not alike"
    read = [*products, *vectors]
    if {tensor.dtype for tensor in read} != {x.dtype}:
        return "its weights are not in one dtype"
    if not all(map(Tensor.is_contiguous, read)):
        return "a weight is not contiguous"
    return None if {tensor.is_cpu for tensor in read} == {True} else "a weight is not on the CPU"


def forward(
    x: Tensor, weights: Sequence[Tensor], eps: Sequence[float], cu_seqlens: Tensor, max_seqlen: int, num_heads: int,
    first_only: bool, states: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.encoder`."""
    x, cu_seqlens = x.contiguous(), cu_seqlens.contiguous()
    layers = len(weights) // OF_A_LAYER
    width, inner = weights[0].shape[0], weights[4 * layers].shape[0]
    packed = type(weights[0]) is PrepackedParameter
    if packed:
        weights[0].packed.check_variant()
        weights = [*_buffers(weights[: PRODUCTS * layers]), *weights[PRODUCTS * layers :]]
    (tokens, hidden), sequences, head_size = x.shape, cu_seqlens.numel() - 1, width // num_heads
    out = x.new_empty(sequences if first_only else tokens, hidden)
    kept = x.new_empty(layers, tokens, hidden) if states else None
    extension.launch(
        "encoder_fwd", x, x=x.data_ptr(), weights=list(map(Tensor.data_ptr, weights)), eps=list(eps),
        cu_seqlens=cu_seqlens.data_ptr(), out=out.data_ptr(), states=extension.pointer(kept), tokens=tokens,
        sequences=sequences, layers=layers, hidden=hidden, inner=inner, heads=num_heads, head_size=head_size,
        scale=head_size**-0.5, prepacked=packed, first_only=first_only,
    )  # fmt: skip
    return out, kept


def _buffers(products: Sequence[PrepackedParameter]) -> list[Tensor]:
    return [weight.packed.buffer for weight in products]
