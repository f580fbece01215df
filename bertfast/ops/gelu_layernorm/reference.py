"""LN(gelu(x · Wᵀ + b)) in plain torch: the definition."""

from __future__ import annotations

from torch.nn import functional as F

from .._autograd import (
    gradients,
    layer_norm,
    layer_norm_gradients,
    linear_gradients,
    rounded,
    upcast,
)


def forward(x, weight, bias, ln_weight, ln_bias, eps, save):
    x_, weight, bias, ln_weight, ln_bias = upcast(x, weight, bias, ln_weight, ln_bias)
    pre = F.linear(x_, weight, bias)
    out, mean, rstd = layer_norm(F.gelu(pre), ln_weight, ln_bias, eps)
    return out.to(x.dtype), pre.to(x.dtype), mean, rstd


def backward(dout, x, weight, pre, mean, rstd, ln_weight, needs):
    dout, x_, weight, pre, ln_weight = upcast(dout, x, weight, pre, ln_weight)
    dgelu, dln_weight, dln_bias = layer_norm_gradients(dout, F.gelu(pre), mean, rstd, ln_weight)
    (dpre,) = gradients(F.gelu, (pre,), dgelu)
    return rounded((*linear_gradients(dpre, x_, weight, needs), dln_weight, dln_bias), x.dtype)


def supports(direction, *args):
    return None
