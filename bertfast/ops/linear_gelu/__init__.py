"""gelu(x · Wᵀ + b): the first half of a layer's feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from .. import _autograd
from .._checks import check_like, check_matrix

dispatch.register("linear_gelu", __name__)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x · weightᵀ + bias), gelu(y) = y · (1 + erf(y / √2)) / 2. Sums in fp32 (float64 for
    float64).

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        weight: [N,K], dtype of x; may be frozen.
        bias: [N], dtype of x.

    Returns: [T,N], dtype of x. Differentiable once; backward keeps the pre-activation [T,N] in the
    dtype of x.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a form asked for by name
    refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _autograd.autocast(x, weight, bias)
    save = _autograd.wants_grad(x, weight, bias)
    if save or _autograd.through_library():
        return _autograd.differentiable("linear_gelu", x, weight, bias, save)[0]
    return _forward(x, weight, bias, False)[0]


def _forward(*args):
    x, weight, bias, _ = args
    check_matrix("x", x)
    features = bias.shape[0] if bias.ndim else 0
    check_like("x", x, ("weight", weight, (features, x.shape[1])), ("bias", bias, (features,)))
    return dispatch.choose("linear_gelu", "forward", args).forward(*args)


def _fwd(x, weight, bias, save):
    out, pre = _forward(x, weight, bias, save)
    return out, pre if save else x.new_empty(0)


def _fwd_fake(x, weight, bias, save):
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape if save else 0)


def _bwd(*args):
    return _autograd.run_backward("linear_gelu", *args)


def _bwd_fake(dout, x, weight, pre, needs):
    return _autograd.fake_gradients(dout, needs, x, weight, weight[:, 0])


_autograd.define(
    "linear_gelu_fwd(Tensor x, Tensor weight, Tensor bias, bool save) -> (Tensor, Tensor)",
    _fwd,
    _fwd_fake,
)
_autograd.define(
    "linear_gelu_bwd(Tensor dout, Tensor x, Tensor weight, Tensor pre, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
_autograd.differentiate(
    "linear_gelu", wanted=(0, 1, 2), arguments=lambda inputs, outputs: (*inputs[:2], outputs[1])
)
