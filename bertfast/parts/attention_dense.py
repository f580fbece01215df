"""Attention with the [S,S] matrices written out: for `output_attentions=True` and for 4-D masks, that call only."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import _philox
from ..packing import Packed
from .plain import note


def attend(
    qkv: Tensor, packed: Packed, mask: Tensor | None, p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """softmax(q·kᵀ/√d + mask)·v, and the probabilities (after dropout, as transformers gives them).

    Args:
        qkv: [T,3,h,d], packed.
        mask: None, or 4-D [B|1, h|1, S|1, S]: bool (True = may look) or float, added to the scaled products. With a
            mask every place of the batch is a token (T = B·S). A query that may look nowhere gives zeros.
        p, seed: dropout, with the bits that the fused operation draws.

    Returns:
        [T,h·d] and the probabilities [B,h,S,S] by column of the batch, zeros in rows and columns of padding.
    """
    asked = "output_attentions=True" if mask is None else "a 4-D attention_mask"
    note("attention", "written out", f"{asked} needs the matrices")
    tokens, _, heads, size = qkv.shape
    place = _compact_places(packed, tokens)
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).flatten(1)
    dense = wide.new_zeros(packed.batch * packed.length, wide.shape[1]).index_copy(0, place, wide)
    dense = dense.view(packed.batch, packed.length, 3, heads, size)
    q, k, v = dense.permute(2, 0, 3, 1, 4)  # [B,h,S,d] each
    scores = q @ k.transpose(2, 3) / math.sqrt(size)  # [B,h,S,S]
    lengths = packed.cu_seqlens.diff()
    real = torch.arange(packed.length, device=qkv.device) < lengths[:, None]  # [B,S]
    allowed = (real[:, None, :, None] & real[:, None, None, :]).expand_as(scores)
    if mask is not None:
        allowed = allowed & (mask if mask.dtype == torch.bool else mask != -torch.inf)
        if mask.dtype != torch.bool:
            scores = scores + mask
    blind = ~allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(blind, 0)
    probabilities = F.softmax(scores, -1).masked_fill(blind, 0)
    if p > 0:
        keep = torch.zeros_like(allowed)
        for row in range(packed.batch):
            keep[row] = _philox.attention_keep(seed, p, row, heads, packed.length)
        probabilities = _philox.dropout(probabilities, p, keep)
    out = (probabilities @ v).transpose(1, 2).reshape(-1, heads * size).index_select(0, place)
    return out.to(qkv.dtype), _by_column(probabilities.to(qkv.dtype), packed)


def _compact_places(packed: Packed, tokens: int) -> Tensor:
    """[T]: where each token lies when every sequence is moved to the left edge of its row of the batch."""
    token = torch.arange(tokens, device=packed.cu_seqlens.device)
    if packed.indices is None:
        return token
    row = packed.indices // packed.length
    return row * packed.length + token - packed.cu_seqlens.index_select(0, row)


def _by_column(probabilities: Tensor, packed: Packed) -> Tensor:
    """Move rows and columns from the left edge to the columns of the batch that the tokens came from."""
    if packed.indices is None:
        return probabilities
    real = torch.zeros(packed.batch * packed.length, dtype=torch.bool, device=probabilities.device)
    real = real.index_fill_(0, packed.indices, True).view(packed.batch, packed.length)
    rank = (real.cumsum(1) - 1).clamp_(min=0)
    shape = probabilities.shape
    columns = probabilities.gather(3, rank[:, None, None, :].expand(shape))
    rows = columns.gather(2, rank[:, None, :, None].expand(shape))
    return rows * (real[:, None, :, None] & real[:, None, None, :])
