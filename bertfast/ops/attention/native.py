"""Launcher of the native forms, C++ and CUDA."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from ... import extension
from ...extension import pointer
from .._philox import keep_scale, threshold

MOST_HEAD_SIZE = 128


def supports(direction: str, x: Tensor, *_) -> str | None:
    """None where the C++ form computes this, else the reason."""
    return extension.refuses(x)


def _cuda_supports(direction: str, x: Tensor, *args) -> str | None:
    qkv = x if direction == "forward" else args[0]
    if qkv.shape[3] > MOST_HEAD_SIZE:
        return f"heads of size {qkv.shape[3]}; the cuda form computes sizes up to {MOST_HEAD_SIZE}"
    return extension.refuses_cuda(qkv)


def forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    p: float,
    seed: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `bertfast.ops.attention`; the second result is None unless `save`."""
    tokens, _, heads, d = qkv.shape
    if qkv.stride()[1:] != (heads * d, d, 1):
        qkv = qkv.contiguous()
    cu_seqlens = cu_seqlens.contiguous()
    out = qkv.new_empty(tokens, heads * d)
    lse = extension.statistics(qkv, (heads, tokens), save)
    extension.launch(
        "attention_fwd", qkv,
        qkv.data_ptr(), cu_seqlens.data_ptr(), out.data_ptr(), pointer(lse), tokens, cu_seqlens.numel() - 1, heads, d,
        qkv.stride(0), scale, pointer(seed), threshold(p), keep_scale(p),
    )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, p: float,
    seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """See `bertfast.ops.attention`: the gradient of qkv."""
    tokens, _, heads, d = qkv.shape
    if qkv.stride()[1:] != (heads * d, d, 1):
        qkv = qkv.contiguous()
    dout, out, lse, cu_seqlens = extension.contiguous(dout, out, lse, cu_seqlens)
    dqkv = qkv.new_empty(qkv.shape)
    if not extension.on_gpu(qkv):  # there the kernel does it, as nothing is read from the device
        dqkv[int(cu_seqlens[-1]) :] = 0  # rows of no sequence
    extension.launch(
        "attention_bwd", qkv,
        dout.data_ptr(), qkv.data_ptr(), out.data_ptr(), lse.data_ptr(), cu_seqlens.data_ptr(), dqkv.data_ptr(), tokens,
        cu_seqlens.numel() - 1, heads, d, qkv.stride(0), scale, pointer(seed), threshold(p), keep_scale(p),
    )  # fmt: skip
    return dqkv


cuda = SimpleNamespace(forward=forward, backward=backward, supports=_cuda_supports)
