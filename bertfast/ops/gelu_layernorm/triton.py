"""The backend triton: the product, then GELU and LN in one kernel; backward from the pre-activation."""

from __future__ import annotations

from torch import Tensor

from .. import _layernorm_triton
from .._layernorm_triton import supports as supports
from .._linear_triton import PRODUCTS as PRODUCTS
from .._linear_triton import linear, linear_backward


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.gelu_layernorm`; only the first result unless `save`. Two launches."""
    pre, _ = linear(x, [weight], [bias])
    out, _, mean, rstd = _layernorm_triton.forward(pre, ln_weight, ln_bias, eps, save, gelu=True)
    return out, pre if save else None, mean, rstd


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, pre: Tensor, mean: Tensor, rstd: Tensor, ln_weight: Tensor,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.gelu_layernorm`: gradients of x, weight, bias, ln_weight, ln_bias. Three launches."""
    norm = _layernorm_triton.backward(dout, pre, mean, rstd, ln_weight, x.dtype, gelu=True)
    wanted = (needs[0], needs[1], False)
    dx, dweight, _ = linear_backward(norm.dproduct, x, [weight], wanted)
    return dx, dweight, norm.dbias, norm.dgain, norm.dshift
