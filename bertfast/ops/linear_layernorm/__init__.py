"""LN(residual + dropout(x · Wᵀ + b)): the end of both halves of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from .. import _autograd
from .._checks import check_beside, check_dropout, check_like, check_matrix, check_sequences

dispatch.register("linear_layernorm", __name__)


def linear_layernorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """z = residual + dropout(x · weightᵀ + bias); (z - mean(z)) / √(var(z) + eps) · ln_weight +
    ln_bias, per row.

    Statistics and sums in fp32 (float64 for float64).

    Args:
        x: [T,K] float32, bfloat16, float16 or float64; any strides.
        weight: [N,K], dtype of x; may be frozen.
        bias: [N], dtype of x.
        residual: [T,N], dtype of x or, beside bfloat16 and float16, float32; any strides.
        ln_weight, ln_bias: [N], dtype of residual.
        eps: added to the variance (the biased one).
        p: probability of dropping; where it is not 0 `seed` (int64 [1]) and `cu_seqlens` (int32
            [B+1]) are needed.

    Under torch.autocast x, weight and bias are cast, the others are not: residual, ln_weight and
    ln_bias take the widest dtype among them, so that a float32 residual stream stays float32.

    Returns: [T,N], dtype of residual. Differentiable once; backward keeps z in the dtype of
    residual, and mean and rstd in fp32.
    Raises ArgumentError (shape, dtype, device), UnsupportedError (a form asked for by name
    refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _autograd.autocast(x, weight, bias)
        residual, ln_weight, ln_bias = _autograd.autocast_beside(x, residual, ln_weight, ln_bias)
    save = _autograd.wants_grad(x, residual, weight, bias, ln_weight, ln_bias)
    args = (x, weight, bias, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, save)
    if save or _autograd.through_library():
        return _autograd.differentiable("linear_layernorm", *args)[0]
    return _forward(*args)[0]


def _forward(*args):
    x, weight, bias, residual, ln_weight, ln_bias, _, p, seed, cu_seqlens, _ = args
    check_matrix("x", x)
    check_matrix("residual", residual)
    tokens, columns = x.shape
    row = residual.shape[1:]
    check_beside(
        x,
        ("residual", residual, (tokens, *row)),
        ("ln_weight", ln_weight, row),
        ("ln_bias", ln_bias, row),
    )
    check_like("x", x, ("weight", weight, (*row, columns)), ("bias", bias, row))
    check_dropout(p, seed, x.device)
    if p > 0:
        check_sequences(cu_seqlens, tokens, x.device)
    return dispatch.choose("linear_layernorm", "forward", args).forward(*args)


def _fwd(*args):
    results = _forward(*args)
    return results if args[-1] else (results[0], *_autograd.nothing_saved(args[3]))


def _fwd_fake(x, weight, bias, residual, ln_weight, ln_bias, eps, p, seed, cu_seqlens, save):
    out = residual.new_empty(residual.shape)
    if not save:
        return out, *_autograd.nothing_saved(residual)
    mean = x.new_empty(x.shape[0], dtype=_autograd.statistics_dtype(x.dtype))
    return out, torch.empty_like(out), mean, torch.empty_like(mean)


def _bwd(*args):
    return _autograd.run_backward("linear_layernorm", *args)


def _bwd_fake(dout, x, weight, z, mean, rstd, ln_weight, p, seed, cu_seqlens, needs):
    bias = x.new_empty(weight.shape[0])
    return _autograd.fake_gradients(dout, needs, x, weight, bias, z, ln_weight, ln_weight)


def _saved(inputs, outputs):
    x, weight, _, _, ln_weight, _, _, p, seed, cu_seqlens, _ = inputs
    return x, weight, *outputs[1:], ln_weight, p, seed, cu_seqlens


_autograd.define(
    "linear_layernorm_fwd(Tensor x, Tensor weight, Tensor bias, Tensor residual, Tensor ln_weight, Tensor ln_bias, "
    "float eps, float p, Tensor? seed, Tensor? cu_seqlens, bool save) -> (Tensor, Tensor, Tensor, Tensor)",
    _fwd,
    _fwd_fake,
)
_autograd.define(
    "linear_layernorm_bwd(Tensor dout, Tensor x, Tensor weight, Tensor z, Tensor mean, Tensor rstd, Tensor ln_weight, "
    "float p, Tensor? seed, Tensor? cu_seqlens, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
_autograd.differentiate("linear_layernorm", wanted=(0, 1, 2, 3, 4, 5), arguments=_saved)
