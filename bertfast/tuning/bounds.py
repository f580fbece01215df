"""How large the terms of each result and gradient are: the operation's formula, and its derivative, on absolute values.

A sum's rounding error is a multiple of eps times the sum of its terms' absolute values, which says S in the accuracy
check. Every function takes the arguments in float64 and the gradient of the result, and returns the sizes of the
forward op's results and of the gradients by argument name. Where a quantity passes through a curved function (gelu,
softmax, LN) its own error is carried on with the bound of the derivative.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops._philox import attention_keep, dropout, hidden_keep

Sizes = tuple[tuple[Tensor, ...], dict[str, Tensor]]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())


def _linear_back(dout: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    return {"x": dout @ weight.abs(), "weight": dout.t() @ x.abs(), "bias": dout.sum(0)}


def _gelu_back(dout: Tensor, pre: Tensor) -> Tensor:
    return dout * (1.13 + 0.8 * pre)  # the largest first and second derivatives of gelu


def _layer_norm(z: Tensor, size: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes of (the normalised row, its mean, rstd) from z and the size of z's terms."""
    rstd = statistics(z, eps)[1].unsqueeze(1)
    normal = (size + size.mean(1, keepdim=True)) * rstd
    return normal, size.mean(1), (rstd * (1 + normal.mean(1, keepdim=True))).squeeze(1)


def _layer_norm_back(
    dout: Tensor, normal: Tensor, z: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, dict]:
    rstd, scaled = statistics(z, eps)[1].unsqueeze(1), dout * weight.abs()
    along = normal * (scaled * normal).mean(1, keepdim=True)
    dz = rstd * (scaled + scaled.mean(1, keepdim=True) + along)
    return dz, {"ln_weight": (dout * normal).sum(0), "ln_bias": dout.sum(0)}


def embedding(
    dout, *, input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment, **rest
) -> Sizes:
    gain, eps, p = rest["ln_weight"], rest["eps"], rest["p"]
    words = inputs_embeds if word is None else word[input_ids]
    rows = [words, position[position_ids], segment[token_type_ids]]
    z, size = sum(rows), sum(row.abs() for row in rows)
    normal, *means = _layer_norm(z, size, eps)
    seed, starts, ids = (rest[name] for name in ("seed", "cu_seqlens", "example_ids"))
    keep = hidden_keep(seed, p, starts, *z.shape, ids) if p else None
    out = dropout(normal * gain.abs() + rest["ln_bias"].abs(), p, keep)
    dz, gradients = _layer_norm_back(dropout(dout.abs(), p, keep), normal, z, gain, eps)
    for name, indices, table in (
        ("word", input_ids, word),
        ("position", position_ids, position),
        ("segment", token_type_ids, segment),
    ):
        if table is not None:
            gradients[name] = dz.new_zeros(table.shape).index_add_(0, indices, dz)
    return (out, *means), {**gradients, "inputs_embeds": dz}


def qkv_projection(dout, *, x, wq, wk, wv, bq, bk, bv, num_heads) -> Sizes:
    parts = [_linear(x, weight, bias) for weight, bias in ((wq, bq), (wk, bk), (wv, bv))]
    gradients: dict[str, Tensor] = {"x": torch.zeros_like(x)}
    for i, (name, weight) in enumerate((("q", wq), ("k", wk), ("v", wv))):
        back = _linear_back(dout[:, i].flatten(1).abs(), x, weight)
        gradients["x"] += back["x"]
        gradients[f"w{name}"], gradients[f"b{name}"] = back["weight"], back["bias"]
    return (torch.stack(parts, dim=1).unflatten(2, (num_heads, -1)),), gradients


def attention(dout, *, qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids) -> Sizes:
    outs, lses, gradients = [], [], []
    for row, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        query, key, value = qkv[start:stop].permute(1, 2, 0, 3)
        absolute = query.abs() @ key.abs().transpose(1, 2) * scale
        carried = 1 + absolute.amax(-1, keepdim=True) if stop > start else absolute
        logits = query @ key.transpose(1, 2) * scale
        counter = row, qkv.shape[2], stop - start
        keep = attention_keep(seed, p, *counter, example_ids) if p else None
        whole = logits.softmax(-1) * carried
        kept = dropout(whole, p, keep)
        dpiece = dout[start:stop].unflatten(1, (qkv.shape[2], -1)).transpose(0, 1).abs()
        dkept = dropout(dpiece @ value.abs().transpose(1, 2), p, keep)
        dlogits = whole * (dkept + (logits.softmax(-1) * dkept).sum(-1, keepdim=True)) * scale
        dquery, dkey = dlogits @ key.abs(), dlogits.transpose(1, 2) @ query.abs()
        piece = torch.stack((dquery, dkey, kept.transpose(1, 2) @ dpiece))
        gradients.append(piece.permute(2, 0, 1, 3))
        outs.append((kept @ value.abs()).transpose(0, 1).flatten(1))
        lse = logits.logsumexp(-1)
        lses.append(carried.squeeze(-1) + lse.abs() if stop > start else lse)
    return (torch.cat(outs), torch.cat(lses, dim=1)), {"qkv": torch.cat(gradients)}


def linear_gelu(dout, *, x, weight, bias) -> Sizes:
    pre = _linear(x, weight, bias)
    return (pre, pre), _linear_back(_gelu_back(dout.abs(), pre), x, weight)


def linear_layernorm(
    dout, *, x, weight, bias, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, example_ids
) -> Sizes:
    keep = hidden_keep(seed, p, cu_seqlens, *residual.shape, example_ids) if p else None
    z = residual + dropout(F.linear(x, weight, bias), p, keep)
    size = residual.abs() + dropout(_linear(x, weight, bias), p, keep)
    normal, *means = _layer_norm(z, size, eps)
    dz, gradients = _layer_norm_back(dout.abs(), normal, z, ln_weight, eps)
    gradients |= {**_linear_back(dropout(dz, p, keep), x, weight), "residual": dz}
    return (normal * ln_weight.abs() + ln_bias.abs(), size, *means), gradients


def gelu_layernorm(dout, *, x, weight, bias, ln_weight, ln_bias, eps) -> Sizes:
    pre, z = _linear(x, weight, bias), F.gelu(F.linear(x, weight, bias))
    normal, *means = _layer_norm(z, pre, eps)
    dz, gradients = _layer_norm_back(dout.abs(), normal, z, ln_weight, eps)
    gradients |= _linear_back(_gelu_back(dz, pre), x, weight)
    return (normal * ln_weight.abs() + ln_bias.abs(), pre, *means), gradients


def masked_cross_entropy(dout, *, x, weight, bias, labels, ignore_index, num_items) -> Sizes:
    rows = (labels != ignore_index).nonzero().squeeze(1)
    piece, share = x[rows], dout.abs() / (len(rows) if num_items is None else num_items)
    size, logits = _linear(piece, weight, bias), F.linear(piece, weight, bias)
    carried = 1 + size.amax(1, keepdim=True)
    target = F.one_hot(labels[rows], weight.shape[0])
    gradients = _linear_back((logits.softmax(1) * carried + target) * share, piece, weight)
    gradients["x"] = torch.zeros_like(x).index_copy(0, rows, gradients["x"])
    sizes = logits.logsumexp(1).abs() + carried.squeeze(1)
    lse = x.new_zeros(x.shape[0]).index_copy(0, rows, sizes)
    return ((2 * lse).sum() * share / dout.abs(), lse), gradients


def statistics(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(mean, 1 / √(var + eps)) of each row."""
    return z.mean(-1), (z.var(-1, unbiased=False) + eps).rsqrt()
