"""Products with weights as they lie: the same bits as with prepacked ones, for any rows, strides and threads."""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch, extension, ops
from bertfast.ops._weights import prepack
from harness import seeds

pytestmark = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
VARIANTS = extension.cpu.variants() if extension.cpu is not None else []
SHAPES = ((64, 384), (33, 7), (70, 200))  # whole panels and blocks of K; parts of both
ROWS = (1, 2, 7, 12, 13, 16, 17, 40, 300)
MOST = max(ROWS)


@pytest.fixture(params=VARIANTS)
def variant(request):
    before = extension.cpu.variant()
    extension.cpu.set_variant(request.param)
    yield request.param
    extension.cpu.set_variant(before)


@pytest.fixture(autouse=True)
def threads_again():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ways(weights: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """The same numbers, lying in memory in several ways."""
    n, k = weights[0].shape

    def wider(weight):  # rows of a wider matrix, from an odd address
        lies = weight.new_empty(n * (k + 5) + 1)[1:].view(n, k + 5)[:, :k]
        return lies.copy_(weight)

    return {
        "plain": weights,
        "wider": [wider(weight) for weight in weights],
        "transposed": [weight.t().contiguous().t() for weight in weights],
        "prepacked": [prepack(weight) for weight in weights],
        "mixed": [prepack(weights[0]), *weights[1:]],
    }


def results(x: torch.Tensor, weights: list[torch.Tensor], rows: list[torch.Tensor]):
    """What every operation with a product gives of x [T,K]."""
    bias, ln_weight, ln_bias = rows
    residual = x.new_ones(x.shape[0], len(bias))
    yield ops.qkv_projection(x, *weights, *rows, num_heads=1)
    yield ops.linear_gelu(x, weights[0], bias)
    yield ops.linear_layernorm(x, weights[0], bias, residual, ln_weight, ln_bias, eps=1e-5)
    yield ops.gelu_layernorm(x, weights[0], bias, ln_weight, ln_bias, eps=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_equal_bits(variant, n, k, dtype):
    generator = seeds.generator(n)
    weights = [torch.randn(n, k, generator=generator).to(dtype) for _ in range(3)]
    rows = [torch.randn(n, generator=generator).to(dtype) for _ in range(3)]
    x = torch.randn(MOST, k, generator=generator).to(dtype)
    with torch.no_grad(), dispatch.use_backend("cpu"):
        whole = list(results(x, weights, rows))
        for name, lies in ways(weights).items():
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for count in ROWS:
                    for got, want in zip(results(x[:count], lies, rows), whole, strict=True):
                        assert got.equal(want[:count]), (name, threads, count)


def test_a_row_that_is_repeated_is_no_packed_weight():
    """A stride of 0 between the rows of a weight is its own, not the mark of a prepacked one."""
    weight, bias, x = torch.randn(1, 40), torch.randn(50), torch.randn(3, 40)
    with dispatch.use_backend("cpu"):
        got = ops.linear_gelu(x, weight.expand(50, 40), bias)
        assert got.equal(ops.linear_gelu(x, weight.repeat(50, 1), bias))
        one = weight.as_strided((1, 40), (0, 1))
        assert ops.linear_gelu(x, one, bias[:1]).equal(got[:, :1])


@pytest.mark.parametrize("count", [3, 16, 200])
def test_gradients_do_not_depend_on_threads(count):
    weight, bias = torch.randn(70, 200, requires_grad=True), torch.randn(70, requires_grad=True)
    x = torch.randn(count, 200, requires_grad=True)

    def gradients():
        with dispatch.use_backend("cpu"):
            out = ops.linear_gelu(x, weight, bias)
        return torch.autograd.grad(out, (x, weight, bias), torch.ones_like(out))

    torch.set_num_threads(1)
    want = gradients()
    torch.set_num_threads(2)
    assert all(map(torch.equal, gradients(), want))
