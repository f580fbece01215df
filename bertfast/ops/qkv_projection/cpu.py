"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

from torch import Tensor

from ... import extension
from ...extension import pointer, pointers
from .._native import supports as supports
from .._weights import operands, unpacked


def forward(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, bq: Tensor, bk: Tensor, bv: Tensor, num_heads: int
) -> Tensor:  # fmt: skip
    """See `bertfast.ops.qkv_projection`."""
    x = extension.with_dense_rows(x)
    (rows, k), n = x.shape, wq.shape[0]
    weights, strides, weight_dtype = operands(wq, wk, wv)
    biases = [bias.contiguous() for bias in (bq, bk, bv)]
    out = x.new_empty(rows, 3, num_heads, n // num_heads)
    extension.launch(
        "qkv_projection_fwd", x, x=x.data_ptr(), weight=pointers(weights),
        weight_stride=strides, bias=pointers(biases), out=out.data_ptr(),
        rows=rows, n=n, k=k, x_stride=x.stride(0), weight_dtype=weight_dtype,
    )  # fmt: skip
    return out


def backward(
    dqkv: Tensor, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, needs: list[bool]
) -> tuple[Tensor | None, ...]:
    """See `bertfast.ops.qkv_projection`: gradients of x, the three weights, the three biases."""
    (dqkv,) = extension.contiguous(dqkv)
    x = extension.with_dense_rows(x)
    weights = [extension.with_dense_rows(unpacked(weight)) for weight in (wq, wk, wv)]
    (rows, k), n = x.shape, wq.shape[0]
    grads = extension.gradients(x, ((rows, k), *((n, k),) * 3, *((n,),) * 3), needs)
    extension.launch(
        "qkv_projection_bwd", x, dqkv=dqkv.data_ptr(), x=x.data_ptr(), weight=pointers(weights),
        weight_stride=[w.stride(0) for w in weights], dx=pointer(grads[0]), dweight=pointers(grads[1:4]),
        dbias=pointers(grads[4:]), rows=rows, n=n, k=k, x_stride=x.stride(0),
    )  # fmt: skip
    return grads
