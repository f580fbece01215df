"""softmax(q · kᵀ / √d) · v inside each sequence of a packed stream."""

from __future__ import annotations

from torch import Tensor

from ... import dispatch
from ...errors import ArgumentError
from .. import _autograd
from .._checks import check_dropout, check_matrix, check_sequences

dispatch.register("attention", __name__)


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """out[t, h] = Σ_k dropout(softmax_k(scale · q[t, h] · k[k, h])) · v[k, h], k over the tokens of
    t's sequence.

    Softmax and sums in fp32 (float64 for float64).

    Args:
        qkv: [T,3,h,d] as `qkv_projection` gives it, float32, bfloat16, float16 or float64; any
            strides.
        cu_seqlens: [B+1] int32; sequence b is the tokens cu_seqlens[b] to cu_seqlens[b+1], and may
            be empty.
        max_seqlen: an upper bound of the lengths, known to the host.
        scale: None for 1 / √d.
        p: probability of dropping; where it is not 0 `seed` (int64 [1]) is needed.

    Returns: [T,h·d], dtype of qkv; 0 in rows that belong to no sequence. Differentiable once;
    backward keeps the result and the log-sum-exp of the scaled logits, [h,T] fp32.
    Raises ArgumentError (shape, dtype, device, sequences), UnsupportedError (a form asked for by
    name refuses).
    """
    if scale is None:
        scale = qkv.shape[-1] ** -0.5 if qkv.ndim else 1.0
    save = _autograd.wants_grad(qkv)
    if save or _autograd.through_library():
        return _autograd.differentiable(
            "attention", qkv, cu_seqlens, max_seqlen, scale, p, seed, save
        )[0]
    return _forward(qkv, cu_seqlens, max_seqlen, scale, p, seed, False)[0]


def _forward(*args):
    qkv, cu_seqlens, max_seqlen, _, p, seed, _ = args
    check_matrix("qkv", qkv, ndim=4)
    if qkv.shape[1] != 3:
        raise ArgumentError("qkv", "shape [T, 3, heads, head size]", f"shape {list(qkv.shape)}")
    check_sequences(cu_seqlens, qkv.shape[0], qkv.device, max_seqlen)
    check_dropout(p, seed, qkv.device)
    return dispatch.choose("attention", "forward", args).forward(*args)


def _fwd(*args):
    out, lse = _forward(*args)
    return out, lse if args[-1] else _autograd.nothing_saved(args[0])[1]


def _fwd_fake(qkv, cu_seqlens, max_seqlen, scale, p, seed, save):
    tokens, _, heads, size = qkv.shape
    out = qkv.new_empty(tokens, heads * size)
    if not save:
        return out, _autograd.nothing_saved(qkv)[1]
    return out, qkv.new_empty(heads, tokens, dtype=_autograd.statistics_dtype(qkv.dtype))


def _bwd(*args):
    return dispatch.choose("attention", "backward", args).backward(*args).contiguous()


def _bwd_fake(dout, qkv, out, lse, cu_seqlens, max_seqlen, scale, p, seed):
    return qkv.new_empty(qkv.shape)


def _saved(inputs, outputs):
    qkv, cu_seqlens, max_seqlen, scale, p, seed, _ = inputs
    return qkv, *outputs, cu_seqlens, max_seqlen, scale, p, seed


_autograd.define(
    "attention_fwd(Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, float scale, float p, Tensor? seed, bool save)"
    " -> (Tensor, Tensor)",
    _fwd,
    _fwd_fake,
)
_autograd.define(
    "attention_bwd(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor cu_seqlens, SymInt max_seqlen, "
    "float scale, float p, Tensor? seed) -> Tensor",
    _bwd,
    _bwd_fake,
)
_autograd.differentiate("attention", wanted=(0,), arguments=_saved)
