"""Offsets beyond 2³¹ and 2³²: the last blocks of streams so long that T·H is 2³³, on memory that exists where touched.

All of it is zeros but the last rows; those must come out as they do in a stream of their own.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bertfast import dispatch
from gpu_code import nvcc
from gpu_code.backends import running
from harness import near

DTYPE, LAST = torch.bfloat16, 160
ELEMENTS = 2**33
BACKENDS = ["triton", "cuda"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "cuda" and nvcc.absent():
        pytest.skip(nvcc.absent())
    if request.param == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    return request.param


def _last_blocks(count: int):
    """The last blocks along x, of all rows of blocks along y and z."""

    def choose(grid):
        x, y, z = grid
        return list(itertools.product(range(max(x - count, 0), x), range(y), range(z)))

    return choose


def _vast(rows: int, *shape: int, dtype=DTYPE) -> tuple[Tensor, Tensor]:
    """(zeros [rows, *shape] whose last rows are random, those rows by themselves)."""
    whole = torch.empty(rows, *shape, dtype=dtype)  # fresh pages of the system: zeros
    whole[-LAST:] = torch.randn(LAST, *shape)
    return whole, whole[-LAST:].clone()


def _run(backend: str, operation: str, direction: str, *args, count: int = 24):
    function = getattr(dispatch._BACKENDS[operation][backend], direction)
    with running(backend, check=False, blocks=_last_blocks(count), multiprocessors=1 << 20):
        return function(*args)


class _Right(NamedTuple):
    """What the reference gives in float64, and in the tensors' dtype."""

    exact: Tensor
    eager: Tensor

    def at(self, *index) -> _Right:
        return _Right(self.exact[index], self.eager[index])


def _near(found: Tensor, expected: _Right, rounded: torch.dtype | None = None) -> None:
    near("last rows", found, expected.exact, expected.eager, rounded)


def _parameters(n: int, k: int) -> list[Tensor]:
    return [torch.randn(n, k).to(DTYPE) / k**0.5, torch.randn(n).to(DTYPE)]


def _reference(operation: str, direction: str, *args):
    """A _Right, or one for each result."""
    function = getattr(dispatch._BACKENDS[operation]["reference"], direction)
    exact = function(*(_in_float64(value) for value in args))
    eager = function(*(value.eager if isinstance(value, _Right) else value for value in args))
    if isinstance(exact, Tensor):
        return _Right(exact, eager)
    return [_Right(*pair) for pair in zip(exact, eager, strict=True)]


def _in_float64(value):
    if isinstance(value, _Right):
        return value.exact
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def test_linear_gelu(backend):
    n = k = 64
    rows = ELEMENTS // k
    x, few = _vast(rows, k)
    weight, bias = _parameters(n, k)
    out, pre = _run(backend, "linear_gelu", "forward", x, weight, bias, True)
    right, right_pre = _reference("linear_gelu", "forward", few, weight, bias, True)
    _near(out[-16:, -32:], right.at(slice(-16, None), slice(-32, None)))
    _near(pre[-16:, -32:], right_pre.at(slice(-16, None), slice(-32, None)))
    (dout, few_dout), needs = _vast(rows, n), [True, False, False]
    pre = x  # any will do
    dx, *_ = _run(backend, "linear_gelu", "backward", dout, x, weight, pre, needs)
    right, *_ = _reference("linear_gelu", "backward", few_dout, few, weight, few, needs)
    _near(dx[-16:, -32:], right.at(slice(-16, None), slice(-32, None)))


def test_qkv_projection(backend):
    k = 64
    x, few = _vast(ELEMENTS // (3 * k), k)
    weights = [_parameters(k, k) for _ in range(3)]
    args = *(w for w, _ in weights), *(b for _, b in weights)
    qkv = _run(backend, "qkv_projection", "forward", x, *args, 2)
    _near(
        qkv[-16:, 2, 1],
        _reference("qkv_projection", "forward", few, *args, 2).at(slice(-16, None), 2, 1),
    )
    (dqkv, few_dqkv), needs = _vast(len(x), 3, 2, k // 2), [True] + [False] * 6
    dx, *_ = _run(backend, "qkv_projection", "backward", dqkv, x, *args[:3], needs)
    right, *_ = _reference("qkv_projection", "backward", few_dqkv, few, *args[:3], needs)
    _near(dx[-16:, -32:], right.at(slice(-16, None), slice(-32, None)))


@pytest.mark.parametrize("operation", ["linear_layernorm", "gelu_layernorm"])
def test_layernorm(backend, operation):
    n = 64
    x, few = _vast(ELEMENTS // n, n)
    weight, bias = _parameters(n, n)
    gain, shift = torch.randn(2, n).to(DTYPE)
    if operation == "linear_layernorm":
        rest = gain, shift, 1e-3, 0.0, None, None, None, True
        args, few_args = (weight, bias, x, *rest), (weight, bias, few, *rest)
    else:
        args = few_args = weight, bias, gain, shift, 1e-3, True
    out, *_, rstd = _run(backend, operation, "forward", x, *args)
    right, *_, right_rstd = _reference(operation, "forward", few, *few_args)
    _near(out[-4:], right.at(slice(-4, None)))
    _near(rstd[-4:], right_rstd.at(slice(-4, None)), rounded=DTYPE)  # the product is, on its way


@pytest.mark.parametrize("operation", ["linear_layernorm", "gelu_layernorm"])
def test_layernorm_backward(backend, operation):
    n = 64
    (dout, few_dout), (x, few) = (_vast(ELEMENTS // n, n) for _ in range(2))
    (mean, few_mean), (rstd, few_rstd) = (_vast(len(x), dtype=torch.float32) for _ in range(2))
    weight, _ = _parameters(n, n)
    gain, dropout, needs = torch.randn(n).to(DTYPE), (0.0, None, None, None), [True, False, False]
    if operation == "gelu_layernorm":
        dropout = ()
    # x stands for z, or for the pre-activation, too
    args = dout, x, weight, x, mean, rstd, gain, *dropout, needs
    few_args = few_dout, few, weight, few, few_mean, few_rstd, gain, *dropout, needs
    dx, _, _, *rest = _run(backend, operation, "backward", *args)
    right, _, _, *right_rest = _reference(operation, "backward", *few_args)
    _near(dx[-4:, -32:], right.at(slice(-4, None), slice(-32, None)))
    if operation == "linear_layernorm":  # dz
        _near(rest[0][-4:], right_rest[0].at(slice(-4, None)))


def test_embedding(backend):
    n = 64
    rows = ELEMENTS // n
    embeds, few = _vast(rows, n)
    positions, few_positions = (
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(LAST, dtype=torch.int64),
    )
    tables = torch.randn(2, 3, n).to(DTYPE)
    gain, shift = torch.randn(2, n).to(DTYPE)

    def args(embeds, ids):
        return None, None, embeds, ids, tables[0], ids, tables[1]

    rest = gain, shift, 1e-3, 0.0, None, None, None, -1, True
    out, *_ = _run(backend, "embedding", "forward", *args(embeds, positions), *rest)
    right, *_ = _reference("embedding", "forward", *args(few, few_positions), *rest)
    _near(out[-4:], right.at(slice(-4, None)))
    (dout, few_dout), needs = _vast(rows, n), [False, True, False, False]
    (mean, few_mean), (rstd, few_rstd) = (_vast(rows, dtype=torch.float32) for _ in range(2))
    rest = 0.0, None, None, None, -1, needs
    given = dout, *args(embeds, positions), gain, mean, rstd
    found = _run(backend, "embedding", "backward", *given, *rest)
    given = few_dout, *args(few, few_positions), gain, few_mean, few_rstd
    right = _reference("embedding", "backward", *given, *rest)
    _near(found[1][-4:], right[1].at(slice(-4, None)))


def test_attention(backend):
    size = 32
    rows = ELEMENTS // (3 * size)
    qkv, few = _vast(rows, 3, 1, size)
    short = [
        rows - LAST * i for i in range(7, -1, -1)
    ]  # the blocks that run own none of the long one
    starts = torch.tensor([0, *short], dtype=torch.int32)
    few_starts = torch.tensor([0] * 8 + [LAST], dtype=torch.int32)
    rest = 512, 0.2, 0.0, None, None  # max_seqlen: of the blocks that run
    out, lse = _run(backend, "attention", "forward", qkv, starts, *rest, True, count=8)
    right, right_lse = _reference("attention", "forward", few, few_starts, *rest, True)
    _near(out[-LAST:], right)
    _near(lse[:, -LAST:], right_lse)
    dout, few_dout = _vast(rows, size)
    dqkv = _run(backend, "attention", "backward", dout, qkv, out, lse, starts, *rest, count=8)
    right = _reference("attention", "backward", few_dout, few, right, right_lse, few_starts, *rest)
    _near(dqkv[-LAST:], right)
