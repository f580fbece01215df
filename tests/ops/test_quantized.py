"""Products with int8 weights: what the definition says, computed exactly, on every instruction set that runs here."""

from __future__ import annotations

import pickle

import pytest
import torch

from bertfast import dispatch, extension, ops
from bertfast.core import encode
from bertfast.core.batch import pack_rows
from bertfast.core.quantize import quantized_view
from bertfast.core.weights import example_weights
from bertfast.errors import UnsupportedError
from bertfast.ops._quantized import Columns, quantized, round_weight
from harness import near, seeds

pytestmark = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))
VARIANTS = extension.describe()["instruction_sets"]
# (n, k, outlier columns, group): whole panels and parts; k that is no multiple of 4 or of a group
SHAPES = ((64, 384, 8, 128), (33, 7, 0, 8), (70, 203, 3, 64), (1, 1, 0, 4), (100, 90, 2, 128))
ROWS = (*range(1, 21), 47, 300)
MOST = max(ROWS)


def weights_of(n, k, outliers, group, count=1, dtype=torch.float32):
    """Weights that read one x, as they are saved and as parameters."""
    columns = torch.randperm(k)[:outliers].sort().values.int()
    columns = Columns(columns, group)
    tensors = [round_weight(torch.randn(n, k), columns) for _ in range(count)]
    return tensors, [quantized(part, dtype) for part in tensors]


def defined(x, tensors, dtype):
    """x [T,K] · weightᵀ in `dtype`, x rounded as the kernels round it."""
    outliers, group = tensors.columns.outliers.long(), tensors.columns.group
    x = x.float()
    rest = x.clone()
    rest[:, outliers] = 0
    out = torch.zeros(len(x), len(tensors.weight), dtype=dtype)
    groups = (rest.split(group, 1), tensors.weight.split(group, 1), tensors.scale.unbind(1))
    for part, weight, column in zip(*groups, strict=True):
        largest = part.abs().amax(1, keepdim=True)
        nothing = largest < 2.0**-100
        factor = torch.full_like(largest, 127) / largest  # 127 / largest is rounded twice in torch
        rounded = (part * factor).round().masked_fill(nothing, 0)
        scale = (largest / 127).masked_fill(nothing, 0)
        sums = rounded.double() @ weight.double().t()  # exact
        out += sums.to(torch.float32).to(dtype) * scale.to(dtype) * column.to(dtype)
    return out + x[:, outliers].to(dtype) @ tensors.outlier_weight.to(dtype).t()


def product(x, weight):
    """The plain product, as value of a `qkv_projection` without biases."""
    zero = torch.zeros(weight.shape[0], dtype=x.dtype)
    with torch.no_grad(), dispatch.use_backend("cpu"):
        return ops.qkv_projection(x, *[weight] * 3, *[zero] * 3, num_heads=1)[:, 2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity(variant, shape, dtype):
    (tensors,), (weight,) = weights_of(*shape, dtype=dtype)
    x = torch.randn(MOST, shape[1]).to(dtype)
    exact, eager = (defined(x, tensors, d) for d in (torch.float64, torch.float32))
    whole = product(x, weight)
    near("product", whole, exact, eager.to(dtype))
    if not shape[2] and shape[1] <= shape[3] and dtype == torch.float32:
        assert whole.equal(eager)  # one group, no outliers: no sum in floats
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in ROWS:
            assert product(x[MOST - count :], weight).equal(whole[MOST - count :]), (threads, count)


def test_every_operation(variant):
    tensors, weights = weights_of(70, 203, 3, 64, count=3)
    rows = [torch.randn(70) for _ in range(3)]
    x, residual = torch.randn(23, 203), torch.randn(23, 70)

    def results(multiply):
        y = multiply(0) + rows[0]
        yield torch.stack([multiply(i) + rows[i] for i in range(3)], 1)
        yield torch.nn.functional.gelu(y)
        for z in (y + residual, torch.nn.functional.gelu(y)):
            yield torch.nn.functional.layer_norm(
                z, (70,), rows[1].to(z.dtype), rows[2].to(z.dtype), 1e-5
            )

    with torch.no_grad(), dispatch.use_backend("cpu"):
        got = [
            ops.qkv_projection(x, *weights, *rows, num_heads=1).flatten(2),
            ops.linear_gelu(x, weights[0], rows[0]),
            ops.linear_layernorm(x, weights[0], rows[0], residual, *rows[1:], eps=1e-5),
            ops.gelu_layernorm(x, weights[0], rows[0], *rows[1:], eps=1e-5),
        ]
    exact, eager = (
        list(results(lambda i, d=d: defined(x, tensors[i], d)))
        for d in (torch.float64, torch.float32)
    )
    near("operations", got, exact, eager)


def test_extreme_rows(variant):
    (tensors,), (weight,) = weights_of(40, 200, 3, 64)
    outlier, *_ = tensors.columns.outliers.tolist()
    plain = next(i for i in range(200) if i not in tensors.columns.outliers)
    x = torch.randn(9, 200)
    x[0] = 0
    x[1, plain] = 1e30
    x[2, plain] = torch.nan
    x[3, plain] = -torch.inf
    x[4] *= 1e-35  # rounds to zeros, but for the outlier columns
    x[5, outlier] = torch.nan
    x[6, outlier] = 1e30
    x[7] *= 1e-25
    out = product(x, weight)
    assert (out[0] == 0).all()
    assert out[[2, 3, 5]].isnan().all()
    fine = [1, 4, 6, 7, 8]
    for row in fine:  # each by itself: they are of different sizes
        one = x[row : row + 1]
        expected = (defined(one, tensors, d) for d in (torch.float64, torch.float32))
        near(f"row {row}", out[row : row + 1], *expected)


def test_largest_sums(variant):
    """Every number ±127: the sums of the longest rows fit int32."""
    k = 65532
    columns = Columns(torch.empty(0, dtype=torch.int32), k)
    tensors = round_weight(torch.ones(3, k), columns)
    out = product(
        torch.tensor([1.0, -1.0])[:, None].expand(2, k), quantized(tensors, torch.float32)
    )
    assert out.equal(torch.tensor([k, -k]).float()[:, None].expand(2, 3))


def test_tensors_come_back(variant):
    for shape in SHAPES:
        (tensors,), (weight,) = weights_of(*shape)
        for kept in (weight, pickle.loads(pickle.dumps(weight))):
            found = kept.packed.tensors()
            assert all(map(torch.equal, found[:3], tensors[:3]))
            assert kept.unpack().equal(tensors.dequantized())


def test_reference_computes_with_what_it_stands_for():
    (tensors,), (weight,) = weights_of(33, 7, 0, 8)
    x, bias = torch.randn(4, 7), torch.randn(33)
    with torch.no_grad(), dispatch.use_backend("reference"):
        expected = ops.linear_gelu(x, tensors.dequantized(), bias)
        assert ops.linear_gelu(x, weight, bias).equal(expected)


def test_refusals():
    _, (weight, *_) = weights_of(33, 40, 2, 8)
    _, (other, *_) = weights_of(33, 40, 2, 16)
    x, bias = torch.randn(4, 40), torch.randn(33)
    with pytest.raises(UnsupportedError, match="quantized apart"):
        ops.qkv_projection(x, weight, weight, other, bias, bias, bias, num_heads=1)
    with pytest.raises(UnsupportedError, match="quantized to int8"):
        ops.linear_gelu(x.requires_grad_(), weight, bias)
    with pytest.raises(UnsupportedError, match=r"quantized to int8.*Load the checkpoint again"):
        weight + 1


@pytest.mark.skipif(len(VARIANTS) < 2, reason="one instruction set on this processor")
def test_another_instruction_set():
    _, (weight,) = weights_of(33, 40, 2, 8)
    before = extension.cpu.variant()
    extension.cpu.set_variant(VARIANTS[0])
    try:
        with pytest.raises(UnsupportedError, match="quantized for the instruction set"):
            product(torch.randn(4, 40), weight)
    finally:
        extension.cpu.set_variant(before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [[1], [23], [40] * 6, [64, 3, 0, 40, 9, 52]], ids=str)
def test_all_layers_in_one_call(variant, lengths, dtype):
    weights = quantized_view(_in(dtype, example_weights("cpu")[0]))
    batch = pack_rows([[1] * length for length in lengths], "cpu")
    x = torch.randn(batch.tokens, 96, generator=seeds.generator(1)).to(dtype)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for first_only in (False, True):
            found = encode.encode_layers(weights, x, batch, first_only)
            assert found is not None
            rows = x
            for index, layer in enumerate(weights.layers):
                last = first_only and index == 1
                rows = encode.encode_layer(layer, rows, batch, (None,) * 3, last)
            assert found[0].equal(rows)


def _in(dtype, weights):
    def cast(part):
        if torch.is_tensor(part):
            return part.to(dtype)
        if isinstance(part, tuple) and part:
            return part._replace(**{n: cast(v) for n, v in part._asdict().items()})
        return [cast(layer) for layer in part] if isinstance(part, list) else part

    return cast(weights)
