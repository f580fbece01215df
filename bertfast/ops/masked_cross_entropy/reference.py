"""Mean of -log softmax(x · Wᵀ + b)[label] over the labelled rows, in plain torch: the definition."""

import torch
from torch.nn import functional as F

from .._formulas import linear_gradients, rounded, statistics_dtype, upcast
from .._formulas import supports as supports


def forward(x, weight, bias, labels, ignore_index, num_items):
    rows, targets = _labelled(labels, ignore_index)
    logits = F.linear(*upcast(x[rows], weight, bias)).to(statistics_dtype(x.dtype))
    row_lse = logits.logsumexp(1)
    losses = row_lse - logits.gather(1, targets[:, None]).squeeze(1)
    loss = losses.sum() / (len(rows) if num_items is None else num_items)
    return loss, row_lse.new_zeros(x.shape[0]).index_copy(0, rows, row_lse)


def backward(dloss, x, weight, bias, labels, lse, ignore_index, num_items, needs):
    rows, targets = _labelled(labels, ignore_index)
    x_rows, weight_fp32, bias_fp32 = upcast(x[rows], weight, bias)
    logits = F.linear(x_rows, weight_fp32, bias_fp32).to(statistics_dtype(x.dtype))
    dlogits = torch.exp(logits - lse[rows, None])
    dlogits[torch.arange(len(rows), device=x.device), targets] -= 1
    dlogits *= dloss / (len(rows) if num_items is None else num_items)
    dx_rows, dweight, dbias = linear_gradients(dlogits.to(x_rows.dtype), x_rows, weight_fp32, needs)
    dbias = None if bias is None else dbias
    dx = None if dx_rows is None else dx_rows.new_zeros(x.shape).index_copy(0, rows, dx_rows)
    return rounded((dx, dweight, dbias), x.dtype)


def _labelled(labels, ignore_index):
    rows = (labels != ignore_index).nonzero().squeeze(1)
    return rows, labels[rows]
