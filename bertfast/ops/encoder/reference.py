"""All layers of BERT in plain torch: the definition, the five operations' references one after the other."""

from __future__ import annotations

import torch

from ..attention import reference as attention
from ..linear_gelu import reference as linear_gelu
from ..linear_layernorm import reference as linear_layernorm
from ..qkv_projection import reference as qkv_projection


def forward(x, weights, eps, cu_seqlens, max_seqlen, num_heads, first_only, states):
    found, layers = [], len(weights) // 16
    for layer in range(layers):
        tensors = weights[layer::layers]
        w, b, norms = tensors[:6], tensors[6:12], (tensors[12:14], tensors[14:])
        qkv = qkv_projection.forward(x, *w[:3], *b[:3], num_heads)
        scale = qkv.shape[-1] ** -0.5
        context, _ = attention.forward(qkv, cu_seqlens, max_seqlen, scale, 0.0, None, False)
        if first_only and layer == layers - 1:
            x, context = (_first(rows, cu_seqlens) for rows in (x, context))
        y = _end(context, w[3], b[3], x, *norms[0], eps[2 * layer])
        inner, _ = linear_gelu.forward(y, w[4], b[4], False)
        x = _end(inner, w[5], b[5], y, *norms[1], eps[2 * layer + 1])
        found.append(x)
    return x, torch.stack(found) if states else None


def _end(x, weight, bias, residual, ln_weight, ln_bias, eps):
    inputs = (x, weight, bias, residual, ln_weight, ln_bias)
    return linear_layernorm.forward(*inputs, eps, 0.0, None, None, False)[0]


def _first(rows, cu_seqlens):
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    padded = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    return padded[torch.where(starts < ends, starts, len(rows))]
