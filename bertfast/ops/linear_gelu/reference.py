"""gelu(x · Wᵀ + b) in plain torch: the definition."""

from torch.nn import functional as F

from .._formulas import gradients, linear_gradients, rounded, upcast
from .._formulas import supports as supports


def forward(x, weight, bias, save):
    pre = F.linear(*upcast(x, weight, bias))
    return F.gelu(pre).to(x.dtype), pre.to(x.dtype)


def backward(dout, x, weight, pre, needs):
    wide_dout, wide_x, wide_weight, wide_pre = upcast(dout, x, weight, pre)
    (dpre,) = gradients(F.gelu, (wide_pre,), wide_dout)
    return rounded(linear_gradients(dpre, wide_x, wide_weight, needs), x.dtype)
