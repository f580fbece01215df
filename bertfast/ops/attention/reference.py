"""softmax(q · kᵀ / √d) · v inside each sequence, in plain torch: the definition."""

from itertools import pairwise

import torch

from .._formulas import gradients, statistics_dtype, upcast
from .._formulas import supports as supports
from .._philox import attention_keep, dropout


def forward(qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids, save):
    tokens, _, heads, size = qkv.shape
    (qkv_fp32,), dtype = upcast(qkv), statistics_dtype(qkv.dtype)
    out = qkv_fp32.new_zeros(tokens, heads, size)
    lse = qkv_fp32.new_zeros(heads, tokens, dtype=dtype)
    for row, (start, stop) in _sequences(cu_seqlens):
        keep = _keep(seed, p, row, heads, stop - start, example_ids)
        out[start:stop] = _attend(qkv_fp32[start:stop], scale, p, keep)
        lse[:, start:stop] = _logits(qkv_fp32[start:stop], scale).to(dtype).logsumexp(-1)
    return out.to(qkv.dtype).flatten(1), lse


def backward(dout, qkv, out, lse, cu_seqlens, max_seqlen, scale, p, seed, example_ids):
    (qkv_fp32,) = upcast(qkv)
    dout = dout.unflatten(1, qkv.shape[2:]).to(qkv_fp32.dtype)
    dqkv = torch.zeros_like(qkv_fp32)
    for row, (start, stop) in _sequences(cu_seqlens):
        keep = _keep(seed, p, row, qkv.shape[2], stop - start, example_ids)
        (dqkv[start:stop],) = gradients(
            lambda piece, keep=keep: _attend(piece, scale, p, keep),
            (qkv_fp32[start:stop],),
            dout[start:stop],
        )
    return dqkv.to(qkv.dtype)


def _sequences(cu_seqlens):
    """(its index, (start, stop)) of each sequence that is not empty."""
    return [
        (row, ends) for row, ends in enumerate(pairwise(cu_seqlens.tolist())) if ends[0] < ends[1]
    ]


def _keep(seed, p, row, heads, length, example_ids):
    return attention_keep(seed, p, row, heads, length, example_ids) if p > 0 else None


def _logits(qkv, scale):
    query, key = qkv[:, 0].transpose(0, 1), qkv[:, 1].transpose(0, 1)
    return query @ key.transpose(1, 2) * scale  # [h,L,L]


def _attend(qkv, scale, p, keep):
    probabilities = dropout(_logits(qkv, scale).softmax(-1), p, keep)
    return (probabilities @ qkv[:, 2].transpose(0, 1)).transpose(0, 1)  # [L,h,d]
