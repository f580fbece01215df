"""The product of two tiles in the precision that the caller allowed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """A · B, + acc where that is not None; fp32 operands are rounded to tf32 where PRECISION says tf32.

    Tensor cores cut the bits off that tf32 lacks: twice the error of rounding, and every product too small.
    """
    if PRECISION == "tf32":
        a, b = _as_tf32(a), _as_tf32(b)
    if acc is None:  # apart: older releases of Triton take no None there
        return tl.dot(a, b, input_precision=PRECISION)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _as_tf32(x):
    """x, for the cut to leave the nearest (ties away from zero); a NaN stays one."""
    half = 1 << 12
    return tl.where(x == x, (x.to(tl.int32, bitcast=True) + half).to(tl.float32, bitcast=True), x)
