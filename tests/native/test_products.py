"""Products with weights as they lie: the same bits as with prepacked ones, for any rows, strides and threads."""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch, extension, ops
from bertfast.ops._weights import RoundedWeight, prepack
from harness import seeds

pytestmark = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
# (N, K): whole panels and blocks of K; parts of both; an odd K of several blocks, of pairs too
SHAPES = ((64, 384), (33, 7), (70, 200), (40, 801))
ROWS = (1, 2, 7, 12, 13, 16, 17, 40, 300)
MOST = max(ROWS)


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


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_weight_that_counts_as_rounded_gives_the_bits_of_a_rounded_copy(variant, n, k):
    generator = seeds.generator(n)
    weight, bias = torch.randn(n, k, generator=generator), torch.zeros(n, dtype=torch.bfloat16)
    weight[0, :2] = torch.tensor([0x007F_FFFF, 0x0000_8001], dtype=torch.int32).view(torch.float32)
    x = torch.randn(40, k, generator=generator).bfloat16()
    x[:, :2] *= 2.0**100  # so that these two subnormal numbers are seen
    x[:, 2:] *= 2.0**-60
    with torch.no_grad(), dispatch.use_backend("cpu"):
        for count in (1, 12, 16, 40):
            got = ops.linear_gelu(x[:count], RoundedWeight(weight, torch.bfloat16), bias)
            assert got.equal(ops.linear_gelu(x[:count], weight.bfloat16(), bias)), count


def test_pairs_of_bfloat16_are_moved_as_they_are(variant):
    """Two neighbours are no number: not a subnormal one beside a zero, nor NaN beside infinity."""
    weight, x = torch.zeros(48, 64, dtype=torch.bfloat16), torch.zeros(40, 64).bfloat16()
    weight[:, ::2] = torch.arange(1, 49)[:, None]
    x[:, ::2] = 1.0
    x[1, 1] = torch.inf
    want = torch.arange(1.0, 49.0).mul(32).expand(40, 48).bfloat16().clone()
    want[1] = -1.0  # 0 * inf, which is NaN
    zero = weight.new_zeros(48)
    with torch.no_grad(), dispatch.use_backend("cpu"):
        assert torch.set_flush_denormal(True)
        try:
            for count in (2, 16, 40):
                for lies in (weight, prepack(weight)):
                    out = ops.qkv_projection(x[:count], *[lies] * 3, *[zero] * 3, num_heads=1)
                    assert out[:, 1].flatten(1).nan_to_num(-1.0).equal(want[:count]), count
        finally:
            torch.set_flush_denormal(False)


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
