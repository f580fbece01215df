"""x · [Wq Wk Wv]ᵀ + [bq bk bv] in plain torch: the definition."""

import torch
from torch.nn import functional as F

from .._formulas import linear_gradients, rounded, upcast
from .._formulas import supports as supports


def forward(x, wq, wk, wv, bq, bk, bv, num_heads):
    x_fp32, *weights = upcast(x, wq, wk, wv, bq, bk, bv)
    parts = [F.linear(x_fp32, weights[i], weights[i + 3]).to(x.dtype) for i in range(3)]
    return torch.stack(parts, dim=1).unflatten(2, (num_heads, -1))


def backward(dqkv, x, wq, wk, wv, needs):
    dtype, (dqkv, x, *weights) = x.dtype, upcast(dqkv.flatten(2), x, wq, wk, wv)
    parts = [
        linear_gradients(dqkv[:, i], x, weights[i], (needs[0], needs[1 + i], needs[4 + i]))
        for i in range(3)
    ]
    dx = sum(part[0] for part in parts) if needs[0] else None
    return rounded((dx, *(part[1] for part in parts), *(part[2] for part in parts)), dtype)
