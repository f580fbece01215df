"""Triton kernels that prove the executor: each a textbook form, none of bertfast's own."""

import triton
import triton.language as tl


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """out = x + y, all [size]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size)
    y = tl.load(y_ptr + i, mask=i < size)
    tl.store(out_ptr + i, x + y, mask=i < size)


@triton.jit
def overlapping_kernel(out_ptr, BLOCK: tl.constexpr):
    """A fault to be found: each block writes its number to one element too many."""
    i = tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + i, tl.program_id(0), mask=i <= BLOCK)


@triton.jit
def softmax_kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    """Softmax of each row of x [rows, columns]; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + j, mask=j < columns, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + row * columns + j, e / tl.sum(e, 0), mask=j < columns)


@triton.jit
def layernorm_kernel(
    x_ptr, w_ptr, b_ptr, out_ptr, mean_ptr, rstd_ptr, columns, BLOCK: tl.constexpr
):
    """LayerNorm of each row of x [rows, columns], eps 1e-5; mean and rstd are [rows]."""
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    inside = j < columns
    x = tl.load(x_ptr + row * columns + j, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / columns
    centred = tl.where(inside, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / columns + 1e-5)
    w = tl.load(w_ptr + j, mask=inside).to(tl.float32)
    b = tl.load(b_ptr + j, mask=inside).to(tl.float32)
    tl.store(out_ptr + row * columns + j, centred * rstd * w + b, mask=inside)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def layernorm_backward_kernel(
    dout_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dw_ptr, rows, columns, BLOCK: tl.constexpr
):
    """dx [rows, columns], and dw [columns] summed by atomics over programs that each walk every n-th row."""
    j = tl.arange(0, BLOCK)
    inside = j < columns
    w = tl.load(w_ptr + j, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        x = tl.load(x_ptr + row * columns + j, mask=inside, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + row * columns + j, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        normal = tl.where(inside, (x - tl.load(mean_ptr + row)) * rstd, 0.0)
        g = dout * w
        c1 = tl.sum(g * normal, 0) / columns
        c2 = tl.sum(g, 0) / columns
        tl.store(dx_ptr + row * columns + j, (g - normal * c1 - c2) * rstd, mask=inside)
        dw += dout * normal
    tl.atomic_add(dw_ptr + j, dw, mask=inside)


@triton.jit
def product_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    m,
    n,
    k,
    a_row,
    b_row,
    b_column,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [m, n] fp32 = a [m, k] b [k, n]; b by its two strides, so either of its dimensions may be the dense one."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        step = start + inner
        a_mask = (i < m)[:, None] & (step < k)[None, :]
        b_mask = (step < k)[:, None] & (j < n)[None, :]
        a = tl.load(a_ptr + i[:, None] * a_row + step[None, :], mask=a_mask, other=0.0)
        b = tl.load(b_ptr + step[:, None] * b_row + j[None, :] * b_column, mask=b_mask, other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    tl.store(out_ptr + i[:, None] * n + j[None, :], sums, mask=(i < m)[:, None] & (j < n)[None, :])


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    length,
    scale,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Flash attention over q, k, v [heads, length, HEAD]: the score matrix is never stored."""
    base = tl.program_id(1).to(tl.int64) * length * HEAD
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, HEAD)
    q = tl.load(
        q_ptr + base + i[:, None] * HEAD + d[None, :], mask=(i < length)[:, None], other=0.0
    )
    high = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, HEAD], tl.float32)
    for start in range(0, length, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        rows = base + j[:, None] * HEAD + d[None, :]
        k = tl.load(k_ptr + rows, mask=(j < length)[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k)) * scale
        s = tl.where((j < length)[None, :], s, float("-inf"))
        top = tl.maximum(high, tl.max(s, 1))
        p = tl.exp(s - top[:, None])
        shrink = tl.exp(high - top)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + rows, mask=(j < length)[:, None], other=0.0)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None])
        high = top
    out = out / total[:, None]
    tl.store(out_ptr + base + i[:, None] * HEAD + d[None, :], out, mask=(i < length)[:, None])
