"""All layers of BERT in plain torch: the definition, the five operations' references one after the other.

Its gradient is that of torch.
"""

from __future__ import annotations

import torch

from ..attention import reference as attention
from ..linear_gelu import reference as linear_gelu
from ..linear_layernorm import reference as linear_layernorm
from ..qkv_projection import reference as qkv_projection


def forward(call):
    x, starts, found = call.x, call.cu_seqlens, []
    for layer in range(call.layers):
        tensors = call.weights[layer :: call.layers]
        seeds = (None,) * 3 if call.seeds is None else call.seeds[layer].split(1)
        w, b, norms = tensors[:6], tensors[6:12], (tensors[12:14], tensors[14:])
        qkv = qkv_projection.forward(x, *w[:3], *b[:3], call.num_heads)
        scale, longest = qkv.shape[-1] ** -0.5, call.max_seqlen
        ids = call.example_ids
        context, _ = attention.forward(qkv, starts, longest, scale, call.p[0], seeds[0], ids, False)
        if call.first_only and layer == call.layers - 1:
            x, context = (_first(rows, starts) for rows in (x, context))
            starts = torch.arange(len(starts), dtype=torch.int32)
        ends = [
            (eps, p, seed, starts, ids, False)
            for eps, p, seed in zip(call.eps[2 * layer :], call.p[1:], seeds[1:], strict=False)
        ]
        y = linear_layernorm.forward(context, w[3], b[3], x, *norms[0], *ends[0])[0]
        inner, _ = linear_gelu.forward(y, w[4], b[4], False)
        x = linear_layernorm.forward(inner, w[5], b[5], y, *norms[1], *ends[1])[0]
        found.append(x)
    return x, torch.stack(found) if call.states else None


def _first(rows, cu_seqlens):
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    padded = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    return padded[torch.where(starts < ends, starts, len(rows))]
