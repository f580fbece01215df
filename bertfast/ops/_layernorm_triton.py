"""LayerNorm over rows in Triton, with what comes before it in the same kernel: dropout and residual, or GELU.

A program holds whole rows in registers, so mean and variance are two passes over registers and one over memory. The
sums over rows that the gradients of gain and bias need have two stages, so that their order never changes: each program
adds up its own run of rows, a second kernel the programs' sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..extension import contiguous, with_dense_rows
from . import _triton
from ._gelu_triton import gelu, gelu_slope
from ._philox import keep_scale, threshold
from ._philox_triton import counter_row, keep_mask
from ._triton import Config, Table, cdiv, multiprocessors, power_of_two

MAX_FEATURES = 4096  # wider rows do not fit the registers of a block
NO_DROPOUT = (None, None, None, 0, 0, 0, 1.0)  # see `dropout_of`
WIDE = 1024  # features from which a row has a block of its own, with more warps


def row_table(name: str, narrow: tuple[int, int], wide: tuple[int, int]) -> Table:
    """The table of a kernel that holds whole rows: (elements of a tile, warps) for `pick`."""
    shapes = {"narrow": narrow, "wide": wide}
    return Table(
        name, {80: {k: Config({"TILE": tile}, warps, 1) for k, (tile, warps) in shapes.items()}}
    )


_FORWARD = row_table("layernorm_forward", narrow=(1024, 4), wide=(2048, 8))
_BACKWARD = row_table("layernorm_backward", narrow=(2048, 8), wide=(4096, 16))
_SUMS = Table(
    "column_sums",
    {80: {"all": Config({"BLOCK_CHUNKS": 32, "BLOCK_N": 32}, num_warps=4, num_stages=1)}},
)


class Gradients(NamedTuple):
    """What `backward` gives; `dz` is None where GELU comes before LN."""

    dz: Tensor | None
    dproduct: Tensor
    dgain: Tensor
    dshift: Tensor
    dbias: Tensor


@triton.jit
def sequence_of(token, starts_ptr, sequences, steps):
    """(position inside the sequence, its index) of each token, int32 like `token`.

    Args:
        starts_ptr: int32 [sequences + 1], where the sequences start, then where the last one ends.
        steps: halvings that a search among sequences + 1 starts takes.
    """
    low = tl.zeros_like(token)
    high = low + sequences + 1
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        not_after = tl.load(starts_ptr + middle, mask=open_, other=0) <= token
        low = tl.where(open_ & not_after, middle + 1, low)
        high = tl.where(open_ & ~not_after, middle, high)
    sequence = low - 1
    return token - tl.load(starts_ptr + sequence), sequence


@triton.jit
def drop(
    x, token, seed_ptr, examples_ptr, starts_ptr, sequences, steps, threshold, scale, COLUMNS: tl.constexpr
):  # fmt: skip
    """dropout(x) of hidden states [ROWS, COLUMNS], `token` [ROWS, 1]; x itself where seed_ptr is None."""
    if seed_ptr is not None:
        position, sequence = sequence_of(token, starts_ptr, sequences, steps)
        row = counter_row(examples_ptr, sequence, sequences)
        keep = keep_mask(tl.load(seed_ptr), 0, position, 0, row, threshold, COLUMNS)
        x = tl.where(keep, x * scale, 0.0)
    return x


@triton.jit
def row_mean(values, inside, features):
    """The mean of each row over its features, [ROWS, 1].

    The choice by `inside` stands between a product and the first addition: fused into one rounding they would give the
    two lanes of an exchange different sums where a lane holds one element, and which of them is kept is open.
    """
    return tl.sum(tl.where(inside, values, 0.0), 1, keep_dims=True) / features


@triton.jit
def normalize(z, inside, features, eps):
    """(normalised rows, mean, rstd) of z [ROWS, COLUMNS] fp32."""
    mean = row_mean(z, inside, features)
    centred = tl.where(inside, z - mean, 0.0)
    rstd = tl.rsqrt(row_mean(centred * centred, inside, features) + eps)
    return centred * rstd, mean, rstd


@triton.jit
def normalize_gradient(dout, normal, rstd, gain, inside, features):
    """Gradient of what `normalize` took, from the gradient of normal · gain + shift."""
    scaled = dout * gain
    mean = row_mean(scaled, inside, features)
    along = row_mean(scaled * normal, inside, features)
    return rstd * (scaled - mean - normal * along)


@triton.jit
def load_row(pointer, columns, features):
    """A vector [features] as an fp32 row [1, COLUMNS]."""
    return tl.load(pointer + columns, mask=columns < features, other=0.0).to(tl.float32)


@triton.jit
def store_sums(partial_ptr, total, which, chunk, chunks, columns, features):
    """The sum over the rows of `total` [ROWS, COLUMNS] into partial [which, chunk, :]."""
    offsets = (which * chunks + chunk).to(tl.int64) * features + columns
    tl.store(partial_ptr + offsets, tl.sum(total, 0, keep_dims=True), mask=columns < features)


@triton.jit(do_not_specialize=["tokens", "sequences", "steps", "threshold"])
def _layernorm_fwd_kernel(
    source_ptr, residual_ptr, residual_stride, gain_ptr, shift_ptr, out_ptr, z_ptr, mean_ptr, rstd_ptr, tokens,
    features, eps, seed_ptr, examples_ptr, starts_ptr, sequences, steps, threshold, scale, GELU: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """out = LN(residual + dropout(source)) or LN(gelu(source)); z_ptr and the statistics where they are kept."""
    ROWS: tl.constexpr = (TILE + COLUMNS - 1) // COLUMNS
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    live = token < tokens
    inside = live & (columns < features)
    offsets = token.to(tl.int64) * features + columns
    z = tl.load(source_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        z = gelu(z)
    z = drop(
        z, token, seed_ptr, examples_ptr, starts_ptr, sequences, steps, threshold, scale, COLUMNS
    )
    if residual_ptr is not None:
        row = residual_ptr + token.to(tl.int64) * residual_stride
        z += tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
    if z_ptr is not None:
        tl.store(z_ptr + offsets, z.to(z_ptr.dtype.element_ty), mask=inside)
    normal, mean, rstd = normalize(z, inside, features, eps)
    if mean_ptr is not None:
        tl.store(mean_ptr + token, mean, mask=live)
        tl.store(rstd_ptr + token, rstd, mask=live)
    gain, shift = load_row(gain_ptr, columns, features), load_row(shift_ptr, columns, features)
    out = normal * gain + shift
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "tiles", "chunks", "sequences", "steps", "threshold"])
def _layernorm_bwd_kernel(
    dout_ptr, dout_stride, source_ptr, mean_ptr, rstd_ptr, gain_ptr, dz_ptr, dproduct_ptr, partial_ptr, tokens, tiles,
    features, chunks, seed_ptr, examples_ptr, starts_ptr, sequences, steps, threshold, scale, GELU: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A run of `tiles` tiles of rows: their gradients, and sums over them into partial [3, chunks, features].

    partial: of dout · normal (gain), dout (shift), dproduct (the linear's bias).
    """
    ROWS: tl.constexpr = (TILE + COLUMNS - 1) // COLUMNS
    chunk = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)[None, :]
    gain = load_row(gain_ptr, columns, features)
    dgain = tl.zeros([ROWS, COLUMNS], tl.float32)
    dshift = tl.zeros([ROWS, COLUMNS], tl.float32)
    dbias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(chunk * tiles, (chunk + 1) * tiles):
        token = tile * ROWS + tl.arange(0, ROWS)[:, None]
        live = token < tokens
        inside = live & (columns < features)
        offsets = token.to(tl.int64) * features + columns
        row = dout_ptr + token.to(tl.int64) * dout_stride
        dout = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
        source = tl.load(source_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + token, mask=live, other=0.0)
        rstd = tl.load(rstd_ptr + token, mask=live, other=0.0)
        z = gelu(source) if GELU else source
        normal = tl.where(inside, (z - mean) * rstd, 0.0)
        dz = normalize_gradient(dout, normal, rstd, gain, inside, features)
        if dz_ptr is not None:
            tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=inside)
        if GELU:
            dz *= gelu_slope(source)
        dz = drop(
            dz, token, seed_ptr, examples_ptr, starts_ptr, sequences, steps, threshold, scale, COLUMNS
        )  # fmt: skip
        if dproduct_ptr is not None:
            tl.store(dproduct_ptr + offsets, dz.to(dproduct_ptr.dtype.element_ty), mask=inside)
        dgain += dout * normal
        dshift += dout
        dbias += dz
    store_sums(partial_ptr, dgain, 0, chunk, chunks, columns, features)
    store_sums(partial_ptr, dshift, 1, chunk, chunks, columns, features)
    store_sums(partial_ptr, dbias, 2, chunk, chunks, columns, features)


@triton.jit(do_not_specialize=["chunks"])
def _column_sums_kernel(
    partial_ptr, first_ptr, second_ptr, third_ptr, chunks, features, BLOCK_CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """The sums over the chunks of partial [2 or 3, chunks, features], one output [features] each."""
    which = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    inside = columns < features
    total = tl.zeros([BLOCK_CHUNKS, BLOCK_N], tl.float32)
    for start in range(0, chunks, BLOCK_CHUNKS):
        chunk = start + tl.arange(0, BLOCK_CHUNKS)[:, None]
        offsets = (which * chunks + chunk).to(tl.int64) * features + columns
        total += tl.load(partial_ptr + offsets, mask=inside & (chunk < chunks), other=0.0)
    # Rounded by the store: Triton 3.3 to 3.6 move an explicit cast behind its use on sm_90 and newer.
    result = tl.sum(total, 0, keep_dims=True)
    if which == 0:
        tl.store(first_ptr + columns, result, mask=inside)
    elif which == 1:
        tl.store(second_ptr + columns, result, mask=inside)
    elif third_ptr is not None:
        tl.store(third_ptr + columns, result, mask=inside)


def supports(call) -> str | None:
    """Of an operation that ends in LN after a product."""
    return _triton.refuses(call.lead, product=True) or refuses(call.ln_weight.shape[0])


def refuses(features: int) -> str | None:
    """Why rows of that many features cannot be normalised here, or None."""
    if features > MAX_FEATURES:
        return f"{features} features; the triton backend normalises rows of at most {MAX_FEATURES}"
    return None


def dropout_of(
    p: float, seed: Tensor | None, cu_seqlens: Tensor | None, example_ids: Tensor | None
) -> tuple:
    """Dropout as the kernels take it: (seed, or None for none, ids, starts, sequences, steps, threshold, scale)."""
    if p == 0:
        return NO_DROPOUT
    starts = cu_seqlens.numel()
    limits = threshold(p), keep_scale(p)
    example_ids, cu_seqlens = contiguous(example_ids, cu_seqlens)
    return seed, example_ids, cu_seqlens, starts - 1, starts.bit_length(), *limits


def pick(table: Table, features: int) -> tuple[Config, int, int]:
    """The table's configuration for rows of that many features, a tile's columns and its rows."""
    columns = max(16, power_of_two(features))
    config = table.pick("narrow" if columns <= WIDE else "wide")
    return config, columns, cdiv(config.blocks["TILE"], columns)


def runs(tokens: int, rows: int) -> tuple[int, int]:
    """How tiles of `rows` rows are shared out: (programs, tiles of each).

    Two programs a multiprocessor keep memory busy; more would only make more partial sums.
    """
    tiles = cdiv(tokens, rows)
    each = cdiv(tiles, 2 * multiprocessors())
    return cdiv(tiles, each), each


def forward(
    source: Tensor, gain: Tensor, shift: Tensor, eps: float, save: bool, *, residual: Tensor | None = None,
    dropout: tuple = NO_DROPOUT, gelu: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """LN(residual + dropout(source)), or LN(gelu(source)); one launch.

    Args:
        source: [T,N] contiguous, the linear's result with its bias. What of it is not kept is written over where it has
            the dtype of `gain`: with a residual and `save` it becomes the sum before LN, without `save` it becomes
            `out`.
        residual: [T,N] in the dtype of `gain`, rows dense.

    Returns: out [T,N], the sum before LN [T,N], both in the dtype of `gain`, mean and rstd [T]; but the first only with
        `save`. There is no sum with `gelu`.
    """
    tokens, features = source.shape
    over = source if source.dtype == gain.dtype else torch.empty_like(source, dtype=gain.dtype)
    z = over if save and not gelu else None
    kept = save and (over is source or not gelu)  # by the caller: the sum, or with GELU the source
    out = torch.empty_like(over) if kept else over
    mean = source.new_empty(tokens, dtype=torch.float32) if save else None
    rstd = None if mean is None else torch.empty_like(mean)
    config, columns, rows = pick(_FORWARD, features)
    if out.numel():
        _layernorm_fwd_kernel[(cdiv(tokens, rows),)](
            source, residual, 0 if residual is None else residual.stride(0), gain.contiguous(), shift.contiguous(),
            out, z, mean, rstd, tokens, features, eps, *dropout, GELU=gelu, COLUMNS=columns,
            **config.options(),
        )  # fmt: skip
    return out, z, mean, rstd


def backward(
    dout: Tensor, source: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor, dtype: torch.dtype, *,
    dropout: tuple = NO_DROPOUT, gelu: bool = False,
) -> Gradients:  # fmt: skip
    """The gradients of `forward`, from the sum before LN (with GELU: from the pre-activation); two launches.

    Args:
        dtype: of the product, hence of the gradients of it and of its bias; the others have that of `gain`.
    """
    dout, source, gain = with_dense_rows(dout), source.contiguous(), gain.contiguous()
    tokens, features = source.shape
    dproduct = torch.empty_like(source, dtype=dtype)
    one = dropout is NO_DROPOUT and gain.dtype == dtype
    dz = None if gelu else (dproduct if one else torch.empty_like(source))
    dtypes = (gain.dtype, gain.dtype, dtype)
    if source.numel() == 0:
        return Gradients(dz, dproduct, *(torch.zeros_like(gain, dtype=d) for d in dtypes))
    config, columns, rows = pick(_BACKWARD, features)
    chunks, tiles = runs(tokens, rows)
    partial = source.new_empty(3, chunks, features, dtype=torch.float32)
    _layernorm_bwd_kernel[(chunks,)](
        dout, dout.stride(0), source, mean, rstd, gain, None if dz is dproduct else dz, dproduct, partial, tokens,
        tiles, features, chunks, *dropout, GELU=gelu, COLUMNS=columns, **config.options(),
    )  # fmt: skip
    return Gradients(dz, dproduct, *column_sums(partial, dtypes))


def column_sums(partial: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The sums over the chunks of partial [2 or 3, chunks, N] fp32, each [N] in its dtype; one launch."""
    count, chunks, features = partial.shape
    sums = [partial.new_empty(features, dtype=dtype) for dtype in dtypes]
    config = _SUMS.pick("all")
    grid = (cdiv(features, config.blocks["BLOCK_N"]), count)
    third = sums[2] if count == 3 else None
    _column_sums_kernel[grid](partial, *sums[:2], third, chunks, features, **config.options())
    return sums
