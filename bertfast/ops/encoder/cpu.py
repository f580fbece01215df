"""The C++ backend of this operation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import extension
from .._weights import PrepackedParameter

OF_A_LAYER = 16  # tensors
_PRODUCTS = (0, 2, 4, 6, 10, 12)  # places among a layer's tensors
_VECTORS = (1, 3, 5, 7, 11, 13, 8, 9, 14, 15)
_shape, _dtype, _is_cpu = (getattr(Tensor, name).__get__ for name in ("shape", "dtype", "is_cpu"))


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
    products, vectors = _by_place(weights, _PRODUCTS), _by_place(weights, _VECTORS)
    packed = type(products[0]) is PrepackedParameter
    if {type(weight) is PrepackedParameter for weight in products} != {packed}:
        return "some weights are prepacked, others are not"
    shapes = [(w.packed.n, w.packed.k) for w in products] if packed else list(map(_shape, products))
    hidden, (width, inner) = x.shape[1], (shapes[0][0], shapes[4 * layers][0])
    rows = [(width, hidden)] * 3 + [(hidden, width), (inner, hidden), (hidden, inner)]
    if shapes != [shape for shape in rows for _ in range(layers)] or width % call.num_heads:
        return "its layers are not alike"
    sizes = [width] * 3 + [hidden, inner] + [hidden] * 5
    if list(map(Tensor.numel, vectors)) != [size for size in sizes for _ in range(layers)]:
        return "its layers are not alike"
    read = [*(_buffers(products) if packed else products), *vectors]
    if set(map(_dtype, read)) != {x.dtype}:
        return "its weights are not in one dtype"
    if not all(map(Tensor.is_contiguous, read)):
        return "a weight is not contiguous"
    return None if all(map(_is_cpu, read)) else "a weight is not on the CPU"


def forward(
    x: Tensor, weights: Sequence[Tensor], eps: Sequence[float], cu_seqlens: Tensor, max_seqlen: int, num_heads: int,
    first_only: bool, states: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.encoder`."""
    x, cu_seqlens = x.contiguous(), cu_seqlens.contiguous()
    products, vectors = _by_place(weights, _PRODUCTS), _by_place(weights, _VECTORS)
    width, inner = products[0].shape[0], weights[10].shape[0]
    packed = type(products[0]) is PrepackedParameter
    if packed:
        products[0].packed.check_variant()
        products = _buffers(products)
    (tokens, hidden), sequences = x.shape, cu_seqlens.numel() - 1
    layers, head_size = len(weights) // OF_A_LAYER, width // num_heads
    out = x.new_empty(sequences if first_only else tokens, hidden)
    kept = x.new_empty(layers, tokens, hidden) if states else None
    extension.launch(
        "encoder_fwd", x, x=x.data_ptr(), weights=[*map(Tensor.data_ptr, products), *map(Tensor.data_ptr, vectors)],
        eps=list(eps), cu_seqlens=cu_seqlens.data_ptr(), out=out.data_ptr(), states=extension.pointer(kept),
        tokens=tokens, sequences=sequences, layers=layers, hidden=hidden, inner=inner, heads=num_heads,
        head_size=head_size, scale=head_size**-0.5, prepacked=packed, first_only=first_only,
    )  # fmt: skip
    return out, kept


def _by_place(weights: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """Of all layers the tensors at the first place, then those at the next: the order of csrc/encoder/op.h."""
    return [weight for place in places for weight in weights[place::OF_A_LAYER]]


def _buffers(products: Sequence[PrepackedParameter]) -> list[Tensor]:
    return [weight.packed.buffer for weight in products]
