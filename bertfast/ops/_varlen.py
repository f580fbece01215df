"""The backend `triton:torch` of attention: forward by torch's own kernel for packed sequences, backward by Triton's.

That kernel is FlashAttention 2 or, where it is installed and the program activated it by
`torch.nn.attention.activate_flash_attention_impl`, FA3 or FA4. It writes nothing to rows of no sequence.
"""

from __future__ import annotations

import functools
import inspect
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import dispatch

NAME = "triton:torch"
_LARGEST_HEAD = 256
_EIGHT, _BYTES = 8, 16  # heads are multiples of so many elements, which are copied at once


def of(triton: ModuleType) -> SimpleNamespace:
    """The backend, made of attention's backend `triton`."""

    def supports(call: Any) -> str | None:
        reason = triton.supports(call)
        if reason is not None or dispatch.backend() == NAME:
            return reason  # asked for by name, as for a whole model, it is triton where torch has nothing
        if call.direction == "backward":
            return "backward is triton's own"
        return _refuses(call.qkv, call.p)

    def forward(
        qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, p: float, seed: Tensor | None,
        example_ids: Tensor | None, save: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if _refuses(qkv, p) or not qkv.shape[0]:
            return triton.forward(qkv, cu_seqlens, max_seqlen, scale, p, seed, example_ids, save)
        out, lse = _attend(qkv, cu_seqlens.contiguous(), max_seqlen, scale, save)
        triton.clear_spare(qkv, cu_seqlens, out, lse)
        return out, lse

    return SimpleNamespace(
        PRODUCTS=("torch",), supports=supports, forward=forward, backward=triton.backward
    )


def _refuses(qkv: Tensor, p: float) -> str | None:
    """Why torch has no such attention, or None."""
    tokens, _, heads, size = qkv.shape
    if reason := _absent():
        return reason
    if p > 0:
        return "torch's attention has other dropout"
    if qkv.dtype not in (torch.bfloat16, torch.float16):
        return f"dtype {qkv.dtype}; torch's attention of packed sequences computes in 16 bits"
    if size % _EIGHT or size > _LARGEST_HEAD:
        most = f"multiples of {_EIGHT} up to {_LARGEST_HEAD}"
        return f"head size {size}; torch's attention takes {most}"
    if qkv.stride(3) != 1 or qkv.data_ptr() % _BYTES or any(s % _EIGHT for s in qkv.stride()[:3]):
        return f"qkv: its heads do not begin at multiples of {_BYTES} bytes"
    if dispatch.is_batch_invariant():
        return "how torch's attention cuts a sum depends on the batch"
    if tokens == heads:
        return f"{tokens} tokens and as many heads: versions of torch differ in which of them lse has first"
    return None


@functools.cache
def _absent() -> str | None:
    """Why this torch has none whose scale can be said, or None."""
    try:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} has no attention of packed sequences"
    if "scale" not in inspect.signature(varlen_attn).parameters:
        return f"torch {torch.__version__} has none with a scale"
    return None


def _attend(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, save: bool
) -> tuple[Tensor, Tensor | None]:
    """(out [T,heads·d], lse [heads,T] or None); rows of no sequence are not written."""
    from torch.nn.attention import varlen

    (tokens, _, heads, _), given = qkv.shape, (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    aux = varlen.AuxRequest(lse=True) if save else None
    found = varlen.varlen_attn(*qkv.unbind(1), *given, return_aux=aux, scale=scale)
    out, lse = found if save else (found, None)
    if lse is not None and lse.shape == (tokens, heads):
        lse = lse.t()
    return out.reshape(tokens, -1), None if lse is None else lse.contiguous()
