"""The matrix products of the Triton backends: x · Wᵀ + b with its epilogues, and all its gradients in one launch.

A weight is [N,K] as it is stored. One launch serves one weight, or three that read the same x: the output's columns
are those of the weights side by side, and a block picks its weight by its column. Sums are fp32, in one fixed order.

Forward: a block owns a tile of the result. Backward: a grid of three roles, the longest first. A block owns a tile of
one dW (sum over tokens), some columns of one db (sum over tokens), or a tile of dX (sum over all columns of dout). With
`pre` the roles read dout · gelu'(pre) instead of dout, computed as the tile is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..extension import gradients, with_dense_rows
from ._dot_triton import dot
from ._gelu_triton import gelu, gelu_slope
from ._triton import Config, Table, cdiv, interpreted, multiprocessors, precision

_GROUP = tl.constexpr(8)  # rows of tiles that are walked together: their operands stay in L2
_SUM_ROWS = tl.constexpr(64)  # what one block of the role db reads at once
_SUM_COLUMNS = tl.constexpr(32)
# Strict fp32: sums of so many steps join the total; in one long chain rounding would add up to twice that of torch.
RUN = tl.constexpr(4)


def _shape(m: int, n: int, k: int, num_warps: int, num_stages: int) -> Config:
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    return Config(blocks, num_warps, num_stages, max_registers=255)


# Keys: for 16-bit dtypes by how many tiles the result gives, large ones first; for float32 by its precision.
_FORWARD_SIZES, _BACKWARD_SIZES = ("many", "some", "few"), ("many", "few")
_FLOAT32 = {"tf32": _shape(64, 128, 32, 4, 3), "ieee": _shape(64, 32, 16, 4, 3)}
_FORWARD = Table(
    "linear",
    {
        80: {
            "many": _shape(128, 128, 64, 8, 4),
            "some": _shape(64, 64, 64, 4, 4),
            "few": _shape(32, 32, 128, 4, 4),
            **_FLOAT32,
        },
    },
)
_BACKWARD = Table(
    "linear_backward",
    {80: {"many": _shape(128, 128, 64, 8, 4), "few": _shape(64, 64, 64, 4, 4), **_FLOAT32}},
)
# Three tiles a step, dout, pre and the other operand, and their product on its way to the tensor cores: 112 KiB.
_WIDE = {"many": _shape(128, 128, 64, 8, 3), "few": _shape(64, 64, 64, 8, 3), **_FLOAT32}
_NARROW = _WIDE | {"many": _shape(128, 128, 32, 8, 3)}  # for cards with 99 KiB a block
_GELU_BACKWARD = Table("linear_gelu_backward", {80: _WIDE, 86: _NARROW, 90: _WIDE, 120: _NARROW})


# ---- the core ----
@triton.jit
def grouped_order(block, tiles_m, tiles_n, GROUP: tl.constexpr):
    """The tile (m, n) of a block: down a group of rows, then along."""
    group = block // (GROUP * tiles_n)
    first = group * GROUP
    rows = tl.minimum(tiles_m - first, GROUP)
    inside = block - group * GROUP * tiles_n
    return first + inside % rows, inside // rows


@triton.jit
def add_product(
    acc, a, pre, a_mask, a_stride, pre_stride, b, b_mask, b_stride, depth,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + A · B, or acc + (A gelu'(pre)) · B: a sum over `depth`.

    Args:
        acc: [BLOCK_M, BLOCK_N] fp32.
        a, pre: pointers [BLOCK_M, BLOCK_K] of the first step; pre may be None. a_mask: [BLOCK_M, 1].
        b: pointers [BLOCK_K, BLOCK_N] of the first step. b_mask: [1, BLOCK_N].
        a_stride, pre_stride, b_stride: elements between neighbours along the depth.
    """
    EXACT: tl.constexpr = PRECISION == "ieee" and a.dtype.element_ty == tl.float32
    if EXACT:
        run = tl.zeros(acc.shape, tl.float32)
    steps = tl.arange(0, BLOCK_K)
    a_step = tl.cast(a_stride, tl.int64) * BLOCK_K
    b_step = tl.cast(b_stride, tl.int64) * BLOCK_K
    for start in range(0, depth, BLOCK_K):
        inside = steps < depth - start
        a_inside = a_mask & inside[None, :]
        a_tile = tl.load(a, mask=a_inside, other=0.0)
        if pre is not None:
            slope = gelu_slope(tl.load(pre, mask=a_inside, other=0.0).to(tl.float32))
            a_tile = (a_tile.to(tl.float32) * slope).to(a.dtype.element_ty)
            # changes no value; without it the compiler computes the slope in the layout of the dot's operand, in which
            # each element is held by several warps
            a_tile = tl.where(a_inside, a_tile, 0.0)
            pre += tl.cast(pre_stride, tl.int64) * BLOCK_K
        b_tile = tl.load(b, mask=inside[:, None] & b_mask, other=0.0)
        if EXACT:
            run = dot(a_tile, b_tile, run, PRECISION)
            acc, run = end_run(acc, run, start // BLOCK_K)
        else:
            acc = dot(a_tile, b_tile, acc, PRECISION)
        a += a_step
        b += b_step
    if EXACT:
        acc += run
    return acc


@triton.jit
def end_run(acc, run, step):
    """(total, sum of the steps since it was added to) after a step."""
    full = tl.cast(step, tl.int32) % RUN == RUN - 1
    return tl.where(full, acc + run, acc), tl.where(full, 0.0, run)


@triton.jit
def _pick(index, first, second, third):
    """The argument number `index`; None stands for those that are not there."""
    if second is None:
        return first
    elif third is None:
        return tl.where(index == 0, first, second)
    else:
        return tl.where(index == 0, first, tl.where(index == 1, second, third))


# ---- forward ----
@triton.jit(do_not_specialize=["rows"])
def _linear_fwd_kernel(
    x, w0, w1, w2, b0, b1, b2, out, pre, rows, n, k, x_stride, w0_stride, w1_stride, w2_stride,
    WEIGHTS: tl.constexpr, GELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [rows, WEIGHTS·n] = x [rows,k] · wᵀ [k,n] + b [n], through gelu if GELU; pre [rows,n] where it is given."""
    tiles = tl.cdiv(n, BLOCK_N)
    tile_m, tile_n = grouped_order(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), WEIGHTS * tiles, _GROUP
    )
    which = tile_n // tiles
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tile_n - which * tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    weight = _pick(which, w0, w1, w2)
    weight_stride = tl.cast(_pick(which, w0_stride, w1_stride, w2_stride), tl.int64)
    acc = add_product(
        tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
        x + m[:, None] * x_stride + depth[None, :], None, m[:, None] < rows, 1, 1,
        weight + columns[None, :] * weight_stride + depth[:, None], columns[None, :] < n, 1,
        k, BLOCK_K, PRECISION,
    )  # fmt: skip
    bias = tl.load(_pick(which, b0, b1, b2) + columns, mask=columns < n, other=0.0)
    acc += bias.to(tl.float32)[None, :]
    offsets = m[:, None] * (WEIGHTS * n) + (which * n + columns)[None, :]
    inside = (m[:, None] < rows) & (columns[None, :] < n)
    if pre is not None:
        tl.store(pre + offsets, acc.to(out.dtype.element_ty), mask=inside)
    if GELU:
        acc = gelu(acc)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=inside)


# ---- backward ----
@triton.jit
def _dweight_tile(
    block, dout, pre, x, dweight, rows, n, k, dout_stride, x_stride,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dweight [n,k] = doutᵀ · x; dout and pre begin at the weight's first column."""
    tile_m, tile_n = grouped_order(block, tl.cdiv(n, BLOCK_M), tl.cdiv(k, BLOCK_N), _GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.arange(0, BLOCK_K).to(tl.int64)
    if pre is not None:
        pre += tokens[None, :] * n + m[:, None]
    acc = add_product(
        tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
        dout + tokens[None, :] * dout_stride + m[:, None], pre, m[:, None] < n, dout_stride, n,
        x + tokens[:, None] * x_stride + columns[None, :], columns[None, :] < k, x_stride,
        rows, BLOCK_K, PRECISION,
    )  # fmt: skip
    offsets = m.to(tl.int64)[:, None] * k + columns[None, :]
    inside = (m[:, None] < n) & (columns[None, :] < k)
    tl.store(dweight + offsets, acc.to(dweight.dtype.element_ty), mask=inside)


@triton.jit
def _dbias_columns(block, dout, pre, dbias, rows, n, dout_stride):
    """Some columns of dbias [n]: dout summed over tokens; dout and pre begin at the weight's first column."""
    columns = block * _SUM_COLUMNS + tl.arange(0, _SUM_COLUMNS)
    tokens = tl.arange(0, _SUM_ROWS).to(tl.int64)
    total = tl.zeros([_SUM_ROWS, _SUM_COLUMNS], tl.float32)
    for start in range(0, rows, _SUM_ROWS):
        t = tokens[:, None] + start
        inside = (t < rows) & (columns[None, :] < n)
        part = tl.load(dout + t * dout_stride + columns[None, :], mask=inside, other=0.0)
        part = part.to(tl.float32)
        if pre is not None:
            part *= gelu_slope(
                tl.load(pre + t * n + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            )
        total += part
    tl.store(dbias + columns, tl.sum(total, 0).to(dbias.dtype.element_ty), mask=columns < n)


@triton.jit
def _dx_tile(
    block, dout, pre, w0, w1, w2, dx, rows, n, k, dout_stride, w0_stride, w1_stride, w2_stride,
    WEIGHTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dx [rows,k] = the sum of dout_i · w_i over the weights."""
    tile_m, tile_n = grouped_order(block, tl.cdiv(rows, BLOCK_M), tl.cdiv(k, BLOCK_N), _GROUP)
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    dout += m[:, None] * dout_stride + depth[None, :]
    if pre is not None:
        pre += m[:, None] * n + depth[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(WEIGHTS):
        weight = _pick(i, w0, w1, w2)
        weight_stride = tl.cast(_pick(i, w0_stride, w1_stride, w2_stride), tl.int64)
        acc = add_product(
            acc,
            dout + i * n, pre, m[:, None] < rows, 1, 1,
            weight + depth[:, None] * weight_stride + columns[None, :], columns[None, :] < k, weight_stride,
            n, BLOCK_K, PRECISION,
        )  # fmt: skip
    offsets = m[:, None] * k + columns[None, :]
    inside = (m[:, None] < rows) & (columns[None, :] < k)
    tl.store(dx + offsets, acc.to(dx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "dw_blocks", "db_blocks"])
def _linear_bwd_kernel(
    dout, pre, x, w0, w1, w2, dx, dw0, dw1, dw2, db0, db1, db2, dw_start0, dw_start1, dw_start2,
    db_start0, db_start1, db_start2, rows, n, k, dout_stride, x_stride, w0_stride, w1_stride, w2_stride,
    dw_blocks, db_blocks,
    WEIGHTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dw, db and dx of the weights that dout [rows, WEIGHTS·n] belongs to: see the roles above. A gradient that is not
    wanted is None; those wanted come first, with the column of dout where their weight's begin.
    """
    block = tl.program_id(0)
    if block < dw_blocks:
        if dw0 is not None:
            tiles = tl.cdiv(n, BLOCK_M) * tl.cdiv(k, BLOCK_N)
            which = block // tiles
            start = _pick(which, dw_start0, dw_start1, dw_start2)
            _dweight_tile(
                block - which * tiles, dout + start, pre, x, _pick(which, dw0, dw1, dw2), rows, n, k,
                dout_stride, x_stride, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    elif block < dw_blocks + db_blocks:
        if db0 is not None:
            tiles = tl.cdiv(n, _SUM_COLUMNS)
            which = (block - dw_blocks) // tiles
            start = _pick(which, db_start0, db_start1, db_start2)
            _dbias_columns(
                block - dw_blocks - which * tiles, dout + start, pre, _pick(which, db0, db1, db2), rows, n,
                dout_stride,
            )  # fmt: skip
    elif dx is not None:
        _dx_tile(
            block - dw_blocks - db_blocks, dout, pre, w0, w1, w2, dx, rows, n, k, dout_stride,
            w0_stride, w1_stride, w2_stride, WEIGHTS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


# ---- launchers ----
def _pick_config(
    table: Table, sizes: Sequence[str], x: Tensor, results: Sequence[tuple[int, int]]
) -> Config:
    """The largest tiles of which the results [m,n] give every multiprocessor one, and none of them gives so few that
    they would finish last; for float32 the entry of its precision, but in the interpreter, which likes large tiles.
    """
    if x.dtype == torch.float32 and not interpreted():
        return table.pick(precision(x))
    if dispatch.is_batch_invariant():
        return table.pick(sizes[0])
    for key in sizes[:-1]:
        config = table.pick(key)
        tiles = [_tiles(config, m, n) for m, n in results]
        if tiles and sum(tiles) >= multiprocessors() <= 4 * min(tiles):
            return config
    return table.pick(sizes[-1])


def _tiles(config: Config, m: int, n: int) -> int:
    return cdiv(m, config.blocks["BLOCK_M"]) * cdiv(n, config.blocks["BLOCK_N"])


def _three(items: Sequence) -> tuple:
    return (*items, None, None, None)[:3]


def linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], gelu: bool = False, save: bool = False
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """x · weightᵀ + bias, through gelu if asked, in one launch.

    Args:
        x: [T,K]. weights: one or three [N,K]. biases: as many [N].
        save: give the pre-activation too (of one weight).

    Returns: (out [T, weights · N], pre [T,N] or None), dtype of x.
    """
    x, weights = with_dense_rows(x), [with_dense_rows(weight) for weight in weights]
    (rows, k), n = x.shape, weights[0].shape[0]
    out = x.new_empty(rows, len(weights) * n)
    pre = torch.empty_like(out) if save else None
    config = _pick_config(_FORWARD, _FORWARD_SIZES, x, [(len(weights) * rows, n)])
    grid = (len(weights) * _tiles(config, rows, n),)
    if out.numel():
        _linear_fwd_kernel[grid](
            x, *_three(weights), *_three([bias.contiguous() for bias in biases]), out, pre, rows, n, k, x.stride(0),
            *_three([weight.stride(0) for weight in weights]),
            WEIGHTS=len(weights), GELU=gelu, PRECISION=precision(x), **config.options(),
        )  # fmt: skip
    return out, pre


def linear_backward(
    dout: Tensor, x: Tensor, weights: Sequence[Tensor], needs: Sequence[bool], pre: Tensor | None = None
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """All gradients of `linear` in one launch.

    Args:
        dout: [T, weights · N]. x: [T,K]. weights: one or three [N,K].
        needs: which gradients are wanted: of x, of each weight, of each bias.
        pre: [T,N], where gelu came after the product (of one weight): dout is the gradient of its result.

    Returns: gradients of x, of each weight and of each bias in the dtype of x, None where not wanted.
    """
    dout, x = with_dense_rows(dout), with_dense_rows(x)
    weights = [with_dense_rows(weight) for weight in weights]
    (rows, k), n, count = x.shape, weights[0].shape[0], len(weights)
    grads = gradients(x, ((rows, k), *((n, k),) * count, *((n,),) * count), needs)
    dx, dweights, dbiases = grads[0], grads[1 : 1 + count], grads[1 + count :]
    dw_starts = [i * n for i in range(count) if needs[1 + i]]
    db_starts = [i * n for i in range(count) if needs[1 + count + i]]
    table = _BACKWARD if pre is None else _GELU_BACKWARD
    results = [(len(dw_starts) * n, k)] if dw_starts else []
    results += [(rows, k)] if needs[0] else []
    config = _pick_config(table, _BACKWARD_SIZES, x, results)
    dw_blocks = len(dw_starts) * _tiles(config, n, k)
    db_blocks = len(db_starts) * cdiv(n, _SUM_COLUMNS.value)
    dx_blocks = _tiles(config, rows, k) if needs[0] else 0
    grid = (dw_blocks + db_blocks + dx_blocks,)
    if rows and grid[0]:
        _linear_bwd_kernel[grid](
            dout, None if pre is None else pre.contiguous(), x, *_three(weights), dx,
            *_three([dw for dw in dweights if dw is not None]), *_three([db for db in dbiases if db is not None]),
            *_three(dw_starts), *_three(db_starts), rows, n, k, dout.stride(0), x.stride(0),
            *_three([weight.stride(0) for weight in weights]), dw_blocks, db_blocks,
            WEIGHTS=count, PRECISION=precision(x), **config.options(),
        )  # fmt: skip
    return grads
