"""LN(residual + dropout(x · Wᵀ + b)) in plain torch: the definition."""

from torch.nn import functional as F

from .._formulas import layer_norm, layer_norm_gradients, linear_gradients, rounded, upcast
from .._formulas import supports as supports
from .._philox import dropout, hidden_keep


def forward(
    x, weight, bias, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, example_ids, save
):
    keep = hidden_keep(seed, p, cu_seqlens, *residual.shape, example_ids) if p > 0 else None
    x, weight, bias, residual_fp32, ln_weight, ln_bias = upcast(
        x, weight, bias, residual, ln_weight, ln_bias
    )
    z = residual_fp32 + dropout(F.linear(x, weight, bias), p, keep)
    out, mean, rstd = layer_norm(z, ln_weight, ln_bias, eps)
    return *rounded((out, z), residual.dtype), mean, rstd


def backward(dout, x, weight, z, mean, rstd, ln_weight, p, seed, cu_seqlens, example_ids, needs):
    keep = hidden_keep(seed, p, cu_seqlens, *z.shape, example_ids) if p > 0 else None
    dout, x_fp32, weight, z_fp32, ln_weight = upcast(dout, x, weight, z, ln_weight)
    dz, dln_weight, dln_bias = layer_norm_gradients(dout, z_fp32, mean, rstd, ln_weight)
    products = linear_gradients(dropout(dz, p, keep).to(x_fp32.dtype), x_fp32, weight, needs)
    return *rounded(products, x.dtype), *rounded((dz, dln_weight, dln_bias), z.dtype)
