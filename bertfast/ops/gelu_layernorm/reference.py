"""LN(gelu(x · Wᵀ + b)) in plain torch: the definition."""

from torch.nn import functional as F

from .._formulas import (
    gradients,
    layer_norm,
    layer_norm_gradients,
    linear_gradients,
    rounded,
    upcast,
)
from .._formulas import supports as supports


def forward(x, weight, bias, ln_weight, ln_bias, eps, save):
    x_fp32, weight, bias, gain, shift = upcast(x, weight, bias, ln_weight, ln_bias)
    pre = F.linear(x_fp32, weight, bias)
    out, mean, rstd = layer_norm(F.gelu(pre.to(gain.dtype)), gain, shift, eps)
    return out.to(ln_weight.dtype), pre.to(x.dtype), mean, rstd


def backward(dout, x, weight, pre, mean, rstd, ln_weight, needs):
    dout, x_fp32, weight, pre, gain = upcast(dout, x, weight, pre, ln_weight)
    pre = pre.to(gain.dtype)
    dgelu, *dln = layer_norm_gradients(dout, F.gelu(pre), mean, rstd, gain)
    (dpre,) = gradients(F.gelu, (pre,), dgelu)
    products = linear_gradients(dpre.to(x_fp32.dtype), x_fp32, weight, needs)
    return *rounded(products, x.dtype), *rounded(dln, ln_weight.dtype)
