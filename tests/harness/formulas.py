"""Each operation as anybody would write it in torch: what the backends are compared with, in float64
and in their own dtype.

Every function takes the arguments of the public one and returns what the forward op does: the
    result, then what it saves.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional as F

from bertfast.ops._philox import attention_keep, dropout, hidden_keep
from bertfast.tuning.bounds import statistics


def embedding(
    input_ids,
    word,
    inputs_embeds,
    position_ids,
    position,
    token_type_ids,
    segment,
    ln_weight,
    ln_bias,
    eps,
    p,
    seed,
    cu_seqlens,
    example_ids,
    padding_idx,
):
    rows = inputs_embeds if word is None else F.embedding(input_ids, word, padding_idx=padding_idx)
    z = rows + F.embedding(position_ids, position) + F.embedding(token_type_ids, segment)
    out = F.layer_norm(z, z.shape[-1:], ln_weight, ln_bias, eps)
    keep = hidden_keep(seed, p, cu_seqlens, *z.shape, example_ids) if p else None
    return dropout(out, p, keep), *statistics(z, eps)


def qkv_projection(x, wq, wk, wv, bq, bk, bv, num_heads):
    parts = [F.linear(x, weight, bias) for weight, bias in ((wq, bq), (wk, bk), (wv, bv))]
    return (torch.stack(parts, dim=1).unflatten(2, (num_heads, -1)),)


def attention(qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids):
    outs, lses = [], []
    for row, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        query, key, value = qkv[start:stop].permute(1, 2, 0, 3)
        logits = query @ key.transpose(1, 2) * scale
        counter = row, qkv.shape[2], stop - start
        keep = attention_keep(seed, p, *counter, example_ids) if p else None
        probabilities = dropout(F.softmax(logits, dim=-1), p, keep)
        outs.append((probabilities @ value).transpose(0, 1).flatten(1))
        lses.append(logits.logsumexp(-1))
    return torch.cat(outs), torch.cat(lses, dim=1)


def linear_gelu(x, weight, bias):
    pre = F.linear(x, weight, bias)
    return F.gelu(pre), pre


def linear_layernorm(
    x, weight, bias, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, example_ids
):
    keep = hidden_keep(seed, p, cu_seqlens, *residual.shape, example_ids) if p else None
    z = residual + dropout(F.linear(x, weight, bias), p, keep)
    return F.layer_norm(z, z.shape[-1:], ln_weight, ln_bias, eps), z, *statistics(z, eps)


def gelu_layernorm(x, weight, bias, ln_weight, ln_bias, eps):
    pre = F.linear(x, weight, bias)
    z = F.gelu(pre).to(ln_weight.dtype)
    return F.layer_norm(z, z.shape[-1:], ln_weight, ln_bias, eps), pre, *statistics(z, eps)


def masked_cross_entropy(x, weight, bias, labels, ignore_index, num_items):
    logits = F.linear(x, weight, bias)
    if num_items is None:
        loss = F.cross_entropy(logits, labels, ignore_index=ignore_index)
    else:
        loss = (
            F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / num_items
        )
    return loss, logits.logsumexp(-1) * (labels != ignore_index)
