"""The backend `eager`: attention in plain torch, in the tensors' own dtype; statistics stay fp32.

Without dropout it goes over a padded batch, as any model in plain torch does, and never reads `cu_seqlens` on the host;
with dropout over the sequences, as the reference does. Shapes: B sequences, S = max_seqlen, h heads of size d.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._eager import HALVES
from .._formulas import in_own_dtype, statistics_dtype
from . import reference

PADDING = 8  # the padded batch may be this many times as large as the real tokens


def supports(call) -> str | None:
    qkv, p = call.qkv, call.p
    if qkv.dtype not in (*HALVES, torch.float32) or (p > 0 and qkv.dtype not in HALVES):
        return f"{qkv.dtype}{', dropout' * (p > 0)}: the reference computes the same"
    padded = (call.cu_seqlens.shape[0] - 1) * call.max_seqlen
    if p == 0 and padded > PADDING * max(qkv.shape[0], 1):
        return f"{padded} padded tokens for {qkv.shape[0]} real ones"
    return None


def forward(qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids, save):
    if p == 0:
        return _padded_forward(qkv, cu_seqlens, max_seqlen, scale, save)
    with in_own_dtype():  # masks of a whole padded batch would take the memory of many
        return reference.forward(qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids, save)


def backward(dout, qkv, out, lse, cu_seqlens, max_seqlen, scale, p, seed, example_ids):
    if p == 0:
        return _padded_backward(dout, qkv, out, lse, cu_seqlens, max_seqlen, scale)
    with in_own_dtype():
        return reference.backward(
            dout, qkv, out, lse, cu_seqlens, max_seqlen, scale, p, seed, example_ids
        )


class _Layout:
    """Where the tokens of a stream lie in the padded batch [B,S]."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, tokens: int):
        column = torch.arange(max_seqlen, device=cu_seqlens.device)
        starts, stops = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
        self.tokens = tokens
        self.real = starts + column < stops  # [B,S]
        # padding: a row after the last
        self.token = torch.where(self.real, starts + column, tokens)

    def pad(self, stream: Tensor) -> Tensor:
        """[T, ...] -> [B,S, ...], zeros at padding, so that no row of another sequence can leak in."""
        return torch.cat((stream, stream.new_zeros(1, *stream.shape[1:])))[self.token]

    def unpad(self, padded: Tensor) -> Tensor:
        """[B,S, ...] -> [T, ...], zeros in rows that belong to no sequence."""
        stream = padded.new_zeros(self.tokens + 1, *padded.shape[2:])
        stream[self.token] = padded
        return stream[: self.tokens]

    def probabilities(self, query: Tensor, key: Tensor, scale: float, lse: Tensor | None):
        """(softmax of the logits [B,h,S,S], its log-sum-exp [B,h,S]), in fp32; given the latter, from it."""
        logits = (query @ key.transpose(2, 3)).to(statistics_dtype(query.dtype)) * scale
        logits = logits.masked_fill(~self.real[:, None, None, :], -torch.inf)
        lse = logits.logsumexp(-1) if lse is None else lse
        return torch.exp(logits - lse.unsqueeze(-1)), lse


def _padded_forward(qkv, cu_seqlens, max_seqlen, scale, save):
    layout = _Layout(cu_seqlens, max_seqlen, qkv.shape[0])
    query, key, value = layout.pad(qkv).permute(2, 0, 3, 1, 4)  # [B,h,S,d] each
    if not save:
        mask = layout.real[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return layout.unpad(out.transpose(1, 2)).flatten(1), None
    probabilities, lse = layout.probabilities(query, key, scale, None)
    out = layout.unpad((probabilities.to(qkv.dtype) @ value).transpose(1, 2))
    return out.flatten(1), layout.unpad(lse.transpose(1, 2)).t().contiguous()


def _padded_backward(dout, qkv, out, lse, cu_seqlens, max_seqlen, scale):
    heads, dtype = qkv.shape[2], qkv.dtype
    layout = _Layout(cu_seqlens, max_seqlen, qkv.shape[0])
    query, key, value = layout.pad(qkv).permute(2, 0, 3, 1, 4)
    dout, out = (layout.pad(t.unflatten(1, (heads, -1))).transpose(1, 2) for t in (dout, out))
    probabilities, _ = layout.probabilities(query, key, scale, layout.pad(lse.t()).transpose(1, 2))
    delta = (dout.to(lse.dtype) * out).sum(-1, keepdim=True)
    dprobabilities = (dout @ value.transpose(2, 3)).to(lse.dtype)
    dlogits = (probabilities * (dprobabilities - delta) * scale).to(dtype)
    dvalue = probabilities.to(dtype).transpose(2, 3) @ dout
    dqkv = torch.stack((dlogits @ key, dlogits.transpose(2, 3) @ query, dvalue))
    return layout.unpad(dqkv.permute(1, 3, 0, 2, 4))  # [3,B,h,S,d] -> [T,3,h,d]
