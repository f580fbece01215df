"""Mean of -log softmax(x · Wᵀ + b)[label] over the labelled rows, without logits of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from .. import _autograd
from .._checks import check_indices, check_like, check_matrix

dispatch.register("masked_cross_entropy", __name__)


def masked_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    num_items: int | None = None,
) -> Tensor:
    """Σ_t (lse(x[t] · weightᵀ + bias) - (x[t] · weightᵀ + bias)[labels[t]]) / n over the rows with
    a label, in fp32.

    Args:
        x: [T,H] float32, bfloat16, float16 or float64; any strides.
        weight: [V,H], dtype of x; may be frozen. bias: [V], dtype of x, or None.
        labels: [T] int64 in [0, V), or `ignore_index`: no label.
        num_items: n; None: the number of labelled rows, as torch's mean (nan if there is none).

    Returns: the loss [], fp32 (float64 for float64). Differentiable once; backward keeps lse [T]
    fp32. Rows without a label get gradient 0.
    Raises ArgumentError (shape, dtype, device; on the CPU a label out of range), UnsupportedError
    (a form asked for by name refuses).
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _autograd.autocast(x, weight, bias)
    args = (x, weight, bias, labels, ignore_index, num_items)
    if _autograd.wants_grad(x, weight, bias) or _autograd.through_library():
        return _autograd.differentiable("masked_cross_entropy", *args)[0]
    return _forward(*args)[0]


def _forward(*args):
    x, weight, bias, labels, ignore_index, _ = args
    check_matrix("x", x)
    words = weight.shape[0] if weight.ndim else 0
    check_like("x", x, ("weight", weight, (words, x.shape[1])))
    if bias is not None:
        check_like("x", x, ("bias", bias, (words,)))
    check_indices("labels", labels, x.shape[0], words, x.device, besides=ignore_index)
    return dispatch.choose("masked_cross_entropy", "forward", args).forward(*args)


def _fwd_fake(x, weight, bias, labels, ignore_index, num_items):
    dtype = _autograd.statistics_dtype(x.dtype)
    return x.new_empty((), dtype=dtype), x.new_empty(x.shape[0], dtype=dtype)


def _bwd(*args):
    return _autograd.run_backward("masked_cross_entropy", *args)


def _bwd_fake(dloss, x, weight, bias, labels, lse, ignore_index, num_items, needs):
    return _autograd.fake_gradients(dloss, needs, x, weight, bias)


_autograd.define(
    "masked_cross_entropy_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor labels, SymInt ignore_index, "
    "SymInt? num_items) -> (Tensor, Tensor)",
    _forward,
    _fwd_fake,
)
_autograd.define(
    "masked_cross_entropy_bwd(Tensor dloss, Tensor x, Tensor weight, Tensor? bias, Tensor labels, Tensor lse, "
    "SymInt ignore_index, SymInt? num_items, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
_autograd.differentiate(
    "masked_cross_entropy",
    wanted=(0, 1, 2),
    arguments=lambda inputs, outputs: (*inputs[:4], outputs[1], *inputs[4:]),
)
