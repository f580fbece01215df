"""Launcher of the native forms, C++ and CUDA."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from ... import extension
from ...extension import pointer
from .._formulas import thaw
from ..packed import buffer_of


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(x)


def _cuda_supports(direction: str, x: Tensor, *_) -> str | None:
    return extension.refuses_cuda(x)


def forward(
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    bq: Tensor,
    bk: Tensor,
    bv: Tensor,
    num_heads: int,
) -> Tensor:
    """See `bertfast.ops.qkv_projection`."""
    x = extension.with_dense_rows(x)
    (rows, k), n = x.shape, wq.shape[0]
    packed = [buffer_of(weight, slot) for slot, weight in enumerate((wq, wk, wv))]
    biases = [bias.contiguous() for bias in (bq, bk, bv)]
    out = x.new_empty(rows, 3, num_heads, n // num_heads)
    extension.launch(
        "qkv_projection_fwd", x,
        x.data_ptr(), *(p.data_ptr() for p in packed), *(b.data_ptr() for b in biases), out.data_ptr(), rows, n, k,
        x.stride(0),
    )  # fmt: skip
    return out


def backward(
    dqkv: Tensor, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.qkv_projection`: gradients of x, the three weights, the three biases."""
    (dqkv,) = extension.contiguous(dqkv)
    x = extension.with_dense_rows(x)
    weights = [extension.with_dense_rows(thaw(weight)) for weight in (wq, wk, wv)]
    (rows, k), n = x.shape, wq.shape[0]
    grads = extension.gradients(x, ((rows, k), *((n, k),) * 3, *((n,),) * 3), needs)
    addresses = [pointer(grad) for grad in grads]
    extension.launch(
        "qkv_projection_bwd", x,
        dqkv.data_ptr(), x.data_ptr(), [w.data_ptr() for w in weights], [w.stride(0) for w in weights], addresses[0],
        addresses[1:4], addresses[4:], rows, n, k, x.stride(0),
    )  # fmt: skip
    return grads


cuda = SimpleNamespace(forward=forward, backward=backward, supports=_cuda_supports)
