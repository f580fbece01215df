"""The C++ backend of this operation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import extension
from .._quantized import QuantizedParameter
from .._weights import KeptParameter, PrepackedParameter

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
    kinds, read = set(map(type, products)), [*products, *vectors]
    if any(issubclass(kind, KeptParameter) for kind in kinds):
        if len(kinds) > 1:
            return "some weights are prepacked or quantized, others are not in the same way"
        if QuantizedParameter in kinds and not _share_columns(products, layers):
            return "query, key and value were quantized apart"
        kept, read = [weight.packed for weight in products], vectors
        shapes, dtypes = (
            [(weight.n, weight.k) for weight in kept],
            {weight.dtype for weight in kept},
        )
    else:
        shapes, dtypes = [weight.shape for weight in products], set()
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
    if {tensor.dtype for tensor in read} | dtypes != {x.dtype}:
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
    kind = type(weights[0])
    if issubclass(kind, KeptParameter):
        weights[0].packed.check_variant()
        weights = [*map(kind.operand, weights[: PRODUCTS * layers]), *weights[PRODUCTS * layers :]]
    (tokens, hidden), sequences, head_size = x.shape, cu_seqlens.numel() - 1, width // num_heads
    out = x.new_empty(sequences if first_only else tokens, hidden)
    kept = x.new_empty(layers, tokens, hidden) if states else None
    extension.launch(
        "encoder_fwd", x, x=x.data_ptr(), weights=list(map(Tensor.data_ptr, weights)), eps=list(eps),
        cu_seqlens=cu_seqlens.data_ptr(), out=out.data_ptr(), states=extension.pointer(kept), tokens=tokens,
        sequences=sequences, layers=layers, hidden=hidden, inner=inner, heads=num_heads, head_size=head_size,
        scale=head_size**-0.5, prepacked=kind is PrepackedParameter,
        int8=kind is QuantizedParameter, first_only=first_only,
    )  # fmt: skip
    return out, kept


def _share_columns(products: Sequence[QuantizedParameter], layers: int) -> bool:
    """Whether the three weights that read one x have the same outlier columns."""
    query, key, value = (
        [w.packed.columns for w in products[i * layers : (i + 1) * layers]] for i in range(3)
    )
    return all(q is k is v for q, k, v in zip(query, key, value, strict=True))
