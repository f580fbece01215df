"""The backend triton: the product with its bias, then dropout, the residual and LN in one kernel."""

from __future__ import annotations

from torch import Tensor

from ...extension import with_dense_rows
from .. import _layernorm_triton
from .._layernorm_triton import dropout_of
from .._layernorm_triton import supports as supports
from .._linear_triton import PRODUCTS as PRODUCTS
from .._linear_triton import linear, linear_backward


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float,
    p: float, seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`; only the first result unless `save`."""
    product, _ = linear(x, [weight], [bias])
    return _layernorm_triton.forward(
        product, ln_weight, ln_bias, eps, save,
        residual=with_dense_rows(residual), dropout=dropout_of(p, seed, cu_seqlens, example_ids),
    )  # fmt: skip


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, ln_weight: Tensor, p: float,
    seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None, needs: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """See `bertfast.ops.linear_layernorm`: gradients of x, weight, bias, residual, ln_weight, ln_bias."""
    dropout = dropout_of(p, seed, cu_seqlens, example_ids)
    norm = _layernorm_triton.backward(dout, z, mean, rstd, ln_weight, x.dtype, dropout=dropout)
    wanted = (needs[0], needs[1], False)
    dx, dweight, _ = linear_backward(norm.dproduct, x, [weight], wanted)
    return dx, dweight, norm.dbias, norm.dz, norm.dgain, norm.dshift
