"""softmax(q · kᵀ / √d) · v inside each sequence of a packed stream."""

from __future__ import annotations

from torch import Tensor

from ...errors import ArgumentError
from .._checks import check_dropout, check_example_ids, check_matrix, check_sequences
from .._contract import Contract
from .._formulas import statistics_dtype


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    example_ids: Tensor | None = None,
) -> Tensor:
    """out[t, h] = Σ_k dropout(softmax_k(scale · q[t, h] · k[k, h])) · v[k, h], k over the tokens of t's sequence.

    Softmax and sums in fp32 (float64 for float64).

    Args:
        qkv: [T,3,h,d] as `qkv_projection` gives it, float32, bfloat16, float16 or float64; any strides.
        cu_seqlens: [B+1] int32; sequence b is the tokens cu_seqlens[b] to cu_seqlens[b+1], and may be empty.
        max_seqlen: an upper bound of the lengths, known to the host.
        scale: None for 1 / √d.
        p: probability of dropping; where it is not 0 `seed` (int64 [1]) is needed.
        example_ids: [B] int64, read where p is not 0: dropout counts a sequence by its id's low 32 bits, so that it
            drops the same in any batch; None: by the sequence's index.

    Returns: [T,h·d], dtype of qkv; 0 in rows that belong to no sequence. Differentiable once;
    backward keeps the result and the log-sum-exp of the scaled logits, [h,T] fp32.
    Raises ArgumentError (shape, dtype, device, sequences), UnsupportedError (a backend asked for by name refuses).
    """
    if scale is None:
        scale = qkv.shape[-1] ** -0.5 if qkv.ndim else 1.0
    return _CONTRACT(qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids)


def _check(a):
    check_matrix("qkv", a.qkv, ndim=4)
    if a.qkv.shape[1] != 3:
        raise ArgumentError("qkv", "shape [T, 3, heads, head size]", f"shape {list(a.qkv.shape)}")
    check_sequences(a.cu_seqlens, a.qkv.shape[0], a.qkv.device, a.max_seqlen)
    check_dropout(a.p, a.seed, a.qkv.device)
    if a.p > 0:
        check_example_ids(a.example_ids, a.cu_seqlens)


def _shapes(a):
    tokens, _, heads, size = a.qkv.shape
    out = (tokens, heads * size), a.qkv.dtype
    return out, ((heads, tokens), statistics_dtype(a.qkv.dtype))


_CONTRACT = Contract(
    "attention",
    "Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, float scale, float p, Tensor? seed, Tensor? example_ids",
    lead="qkv",
    check=_check,
    results=("out", "lse"),
    shapes=_shapes,
    saved=("qkv", "out", "lse", "cu_seqlens", "max_seqlen", "scale", "p", "seed", "example_ids"),
    gradients={"qkv": None},
)
