"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

from torch import Tensor

from ... import extension
from ...extension import pointer
from .._native import dropout
from .._native import supports as supports


def forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, p: float, seed: Tensor | None,
    example_ids: Tensor | None, save: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """See `bertfast.ops.attention`; the second result is None unless `save`."""
    tokens, _, heads, d = qkv.shape
    if qkv.stride()[1:] != (heads * d, d, 1):
        qkv = qkv.contiguous()
    cu_seqlens = cu_seqlens.contiguous()
    example_ids = None if example_ids is None else example_ids.contiguous()
    out = qkv.new_empty(tokens, heads * d)
    lse = extension.statistics(qkv, (heads, tokens), save)
    extension.launch(
        "attention_fwd", qkv, qkv=qkv.data_ptr(), cu_seqlens=cu_seqlens.data_ptr(), out=out.data_ptr(),
        lse=pointer(lse), tokens=tokens, sequences=cu_seqlens.numel() - 1, heads=heads, head_size=d,
        qkv_stride=qkv.stride(0), scale=scale, dropout=dropout(p, seed, example_ids),
    )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, p: float,
    seed: Tensor | None, example_ids: Tensor | None,
) -> Tensor:  # fmt: skip
    """See `bertfast.ops.attention`: the gradient of qkv."""
    tokens, _, heads, d = qkv.shape
    if qkv.stride()[1:] != (heads * d, d, 1):
        qkv = qkv.contiguous()
    dout, out, lse = extension.contiguous(dout, out, lse)
    cu_seqlens, example_ids = extension.contiguous(cu_seqlens, example_ids)
    dqkv = qkv.new_empty(qkv.shape)
    if not extension.on_gpu(qkv):  # there the kernel does it, as nothing is read from the device
        dqkv[int(cu_seqlens[-1]) :] = 0  # rows of no sequence
    extension.launch(
        "attention_bwd", qkv, dout=dout.data_ptr(), qkv=qkv.data_ptr(), out=out.data_ptr(), lse=lse.data_ptr(),
        cu_seqlens=cu_seqlens.data_ptr(), dqkv=dqkv.data_ptr(), tokens=tokens, sequences=cu_seqlens.numel() - 1,
        heads=heads, head_size=d, qkv_stride=qkv.stride(0), scale=scale, dropout=dropout(p, seed, example_ids),
    )  # fmt: skip
    return dqkv
