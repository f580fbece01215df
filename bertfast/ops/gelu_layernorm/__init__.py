"""LN(gelu(x · Wᵀ + b)): the transform before the decoder of the masked-language-model head."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from .. import _autograd
from .._checks import check_beside, check_like, check_matrix

dispatch.register("gelu_layernorm", __name__)


def gelu_layernorm(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, *, eps: float
) -> Tensor:
    """g = gelu(x · weightᵀ + bias), erf form; (g - mean(g)) / √(var(g) + eps) · ln_weight +
    ln_bias, per row.

    Statistics and sums in fp32 (float64 for float64).

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        weight: [N,K], dtype of x; may be frozen.
        bias: [N], dtype of x.
        ln_weight, ln_bias: [N], dtype of x or, beside bfloat16 and float16, float32.
        eps: added to the variance (the biased one).

    Under torch.autocast x, weight and bias are cast, the others are not: ln_weight and ln_bias take
    the widest dtype among them.

    Returns: [T,N], dtype of ln_weight. Differentiable once; backward keeps the pre-activation in
    the dtype of x, and mean and rstd in fp32.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a form asked for by name
    refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _autograd.autocast(x, weight, bias)
        ln_weight, ln_bias = _autograd.autocast_beside(x, ln_weight, ln_bias)
    save = _autograd.wants_grad(x, weight, bias, ln_weight, ln_bias)
    if save or _autograd.through_library():
        return _autograd.differentiable(
            "gelu_layernorm", x, weight, bias, ln_weight, ln_bias, eps, save
        )[0]
    return _forward(x, weight, bias, ln_weight, ln_bias, eps, False)[0]


def _forward(*args):
    x, weight, bias, ln_weight, ln_bias, _, _ = args
    check_matrix("x", x)
    features = bias.shape[0] if bias.ndim else 0
    check_like(
        "x",
        x,
        ("weight", weight, (features, x.shape[1])),
        ("bias", bias, (features,)),
    )
    check_beside(x, ("ln_weight", ln_weight, (features,)), ("ln_bias", ln_bias, (features,)))
    return dispatch.choose("gelu_layernorm", "forward", args).forward(*args)


def _fwd(*args):
    results = _forward(*args)
    return results if args[-1] else (results[0], *_autograd.nothing_saved(args[0]))


def _fwd_fake(x, weight, bias, ln_weight, ln_bias, eps, save):
    pre = x.new_empty(x.shape[0], weight.shape[0])
    out = torch.empty_like(pre, dtype=ln_weight.dtype)
    if not save:
        return out, *_autograd.nothing_saved(x)
    mean = x.new_empty(x.shape[0], dtype=_autograd.statistics_dtype(x.dtype))
    return out, pre, mean, torch.empty_like(mean)


def _bwd(*args):
    return _autograd.run_backward("gelu_layernorm", *args)


def _bwd_fake(dout, x, weight, pre, mean, rstd, ln_weight, needs):
    bias = x.new_empty(weight.shape[0])
    return _autograd.fake_gradients(dout, needs, x, weight, bias, ln_weight, ln_weight)


def _saved(inputs, outputs):
    x, weight, _, ln_weight, _, _, _ = inputs
    return x, weight, *outputs[1:], ln_weight


_autograd.define(
    "gelu_layernorm_fwd(Tensor x, Tensor weight, Tensor bias, Tensor ln_weight, Tensor ln_bias, float eps, bool save)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fwd,
    _fwd_fake,
)
_autograd.define(
    "gelu_layernorm_bwd(Tensor dout, Tensor x, Tensor weight, Tensor pre, Tensor mean, Tensor rstd, Tensor ln_weight, "
    "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
_autograd.differentiate("gelu_layernorm", wanted=(0, 1, 2, 3, 4), arguments=_saved)
