"""erf GELU and its derivative on fp32 tiles, and over whole tensors.

gelu(x) = x Φ(x). Φ(-u) = t Q(t) exp(-u²/2) with t = 1 / (1 + 0.2616 u), u = |x|, and Q the fit of the C++ backend
(`csrc/common/simd.h`): relative error 7e-9, positive and smooth at any u, so the tail falls to -0 without a step back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton import Config, Table, cdiv

_TABLE = Table("gelu", {80: {"all": Config({"BLOCK": 2048}, num_warps=8, num_stages=1)}})


@triton.jit
def _density(x):
    """exp(-x²/2); on a GPU 0 where that is below 2^-126."""
    return tl.exp2(x * x * -0.72134752)


@triton.jit
def _cumulative(x, e):
    """Φ(x), given e = _density(x)."""
    t = 1.0 / (1.0 + tl.abs(x) * 0.261629509)
    q = t * 0.03239331229 - 0.1587135889
    q = q * t + 0.2583581135
    q = q * t - 0.160211374
    q = q * t + 0.1679475997
    q = q * t + 0.04768466723
    q = q * t + 0.1046296031
    q = q * t + 0.1034906037
    q = q * t + 0.1044210663
    tail = q * t * e
    return tl.where(x < 0, tail, 1.0 - tail)


@triton.jit
def gelu(x):
    """x Φ(x), x fp32; error at most 4 · 2^-23 · max(1, |x|)."""
    return x * _cumulative(x, _density(x))


@triton.jit
def gelu_slope(x):
    """The derivative: Φ(x) + x φ(x), x fp32; 0 and 1 at the infinities."""
    e = _density(x)
    return _cumulative(x, e) + tl.where(e == 0.0, 0.0, x * e * 0.398942280)


@triton.jit
def _gelu_kernel(pre_ptr, dout_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """out = gelu(pre), or dout · gelu'(pre) where dout is given; all [count]."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    pre = tl.load(pre_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if dout_ptr is None:
        result = gelu(pre)
    else:
        dout = tl.load(dout_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        result = dout * gelu_slope(pre)
    tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=inside)


def gelu_of(pre: Tensor, dout: Tensor | None = None) -> Tensor:
    """gelu(pre), or dout · gelu'(pre) where dout is given: contiguous, shape and dtype of pre."""
    pre, dout = pre.contiguous(), dout if dout is None else dout.contiguous()
    out, config = torch.empty_like(pre), _TABLE.pick("all")
    if out.numel():
        grid = (cdiv(out.numel(), config.blocks["BLOCK"]),)
        _gelu_kernel[grid](pre, dout, out, out.numel(), **config.options())
    return out
