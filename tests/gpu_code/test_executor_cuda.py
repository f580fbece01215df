"""Kernels that nvcc compiles for sm_80, executed and held against numpy and torch."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy
import pytest
import torch

from gpu_code import executor, nvcc
from gpu_code.memory import Memory

pytestmark = pytest.mark.skipif(bool(nvcc.absent()), reason=nvcc.absent() or "nvcc is present")
ORDERS = ("forward", "reversed", "shuffled")
KERNELS = Path(__file__).with_name("kernels")


@functools.cache
def module(stem: str):
    return executor.load(nvcc.ptx(KERNELS / f"{stem}.cu"), name=f"{stem}.cu")


def run(kernel: str, grid, block, inputs: list, out: tuple, dtype=torch.int32, after=(), **options):
    """Launches `stem.kernel` on inputs, an output [*out] that starts unwritten, and what comes after it."""
    stem, name = kernel.split(".")
    with Memory() as memory:
        result = torch.empty(out, dtype=dtype)
        report = memory.launch(module(stem)[name], grid, block, *inputs, result, *after, **options)
    assert report.unwritten.get(f"argument {len(inputs)}", 0) == 0
    return result.numpy() if dtype != torch.bfloat16 else result


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(order):
    x = torch.randint(-1000, 1000, (32,), dtype=torch.int32)
    out = run("warps.shuffles", (1, 1, 1), (32, 1, 1), [x], (7, 32), order=order)
    lane, half = numpy.arange(32), numpy.arange(32) // 16 * 16
    sources = [
        numpy.full(32, 5),
        numpy.where(lane < 3, lane, lane - 3),
        numpy.where(lane + 7 > 31, lane, lane + 7),
        lane ^ 9,
        half + (lane + 1) % 16,
        numpy.where(lane % 16 + 7 > 15, lane, lane + 7),
    ]
    for row, source in enumerate(sources):
        assert (out[row] == x.numpy()[source]).all(), row
    assert (out[6] == ~x.numpy()[lane ^ 1]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_votes_and_reductions(order):
    x = torch.randint(-4, 5, (32,), dtype=torch.int32)
    out = run("warps.votes", (1, 1, 1), (32, 1, 1), [x], (8, 32), order=order)
    v, bits = x.numpy(), 1 << numpy.arange(32, dtype=numpy.uint64)

    def mask(where):
        return numpy.uint64(bits[where].sum()).astype(numpy.uint32).view(numpy.int32)

    assert (out[0] == mask(v > 0)).all()
    assert (out[1] == (v == 3).any()).all()
    assert (out[2] == 1).all()
    assert (out[3] == [mask(v == value) for value in v]).all()
    assert (out[4] == 0).all()
    assert (out[5, 1::2] == v[1::2].sum()).all()
    assert (out[5, 0::2] == (v[0::2] < 0).sum()).all()
    assert (out[6] == v.max()).all()
    assert (out[7] == numpy.bitwise_xor.reduce(v)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_divergent_lanes_meet_again(order):
    out = run("warps.divergence", (1, 1, 1), (32, 1, 1), [], (32,), order=order)
    for start, found in enumerate(out, 1):
        n, steps = start, 0
        while n != 1:
            n, steps = 3 * n + 1 if n & 1 else n // 2, steps + 1
        assert found == steps + 32000


@pytest.mark.parametrize("order", ORDERS)
def test_transpose(order):
    x = torch.randn(70, 45)
    out = run(
        *("memory.transpose", (2, 3, 1), (32, 8, 1), [x], (45, 70), torch.float32),
        after=(70, 45),
        order=order,
    )
    assert (out == x.numpy().T).all()


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order):
    x = torch.randint(-1000, 1000, (300,), dtype=torch.int32)
    counts, sums, sums64 = (
        torch.zeros(16, dtype=torch.int32),
        torch.zeros(1),
        torch.zeros(1).double(),
    )
    found = torch.tensor([-5000, 5000, -1, 0, 0, 0], dtype=torch.int32)
    kernel = module("memory")["atomics"]
    Memory().launch(
        kernel, (3, 1, 1), (128, 1, 1), x, 300, counts, found, sums, sums64, order=order
    )
    v = x.numpy()
    reduced = [numpy.bitwise_and, numpy.bitwise_or, numpy.bitwise_xor, numpy.add]
    assert counts.tolist() == numpy.bincount(v & 15, minlength=16).tolist()
    assert found.tolist() == [v.max(), v.min(), *(int(f.reduce(v)) for f in reduced)]
    assert sums.item() == sums64.item() == v.sum()


def test_half_atomics():
    x = torch.randint(-8, 9, (64, 2)).half()
    out = torch.zeros(2, dtype=torch.float16)
    Memory().launch(module("memory")["half_atomics"], (2, 1, 1), (32, 1, 1), x, out)
    assert out.tolist() == x.sum(0).tolist()


@pytest.mark.parametrize("order", ORDERS)
def test_last_block_sees_what_the_others_wrote(order):
    x = torch.randint(-1000, 1000, (5 * 64,), dtype=torch.int32)
    partial, arrived = torch.zeros(5, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    total = run(
        "memory.last_block", (5, 1, 1), (64, 1, 1), [x, partial, arrived], (1,), order=order
    )
    assert total[0] == x.sum().item()
    assert arrived.item() == 0


@pytest.mark.parametrize("size", [0, 4, 12, 16])
def test_short_copies_are_filled_with_zeros(size):
    x = torch.arange(1, 65, dtype=torch.int32)
    out = run("memory.short_copies", (1, 1, 1), (16, 1, 1), [x], (64,), after=(size,))
    kept = torch.arange(64) % 4 < size // 4
    assert (out[::-1] == (x * kept).numpy()).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", ["f16", "bf16", "tf32"])
def test_fragments_are_where_the_isa_places_them(form, order):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[form]
    k = 8 if form == "tf32" else 16
    a, b = torch.randint(-9, 10, (16, k)).to(dtype), torch.randint(-9, 10, (k, 8)).to(dtype)
    out = run(
        *(f"products.fragments_{form}", (1, 1, 1), (32, 1, 1), [a, b], (16, 8), torch.float32),
        order=order,
    )
    assert (out == (a.float() @ b.float()).numpy()).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", [8, 16, 136])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipelined_product(dtype, k, order):
    a, b = torch.randint(-9, 10, (64, k)).to(dtype), torch.randint(-9, 10, (k, 64)).to(dtype)
    form = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    out = run(
        *(f"products.pipelined_{form}", (1, 1, 1), (128, 1, 1), [a, b], (64, 64), torch.float32),
        after=(k,),
        order=order,
    )
    assert (out == (a.float() @ b.float()).numpy()).all()


def test_lop3_has_every_truth_table():
    x = torch.tensor([0xF0, 0xCC, 0xAA], dtype=torch.int32) * 0x01010101  # wraps to the signed word
    out = run("scalars.lop3", (1, 1, 1), (1, 1, 1), [x], (256,)).view(numpy.uint32)
    assert (out == numpy.arange(256, dtype=numpy.uint32) * 0x01010101).all()


def test_prmt_has_every_selector_and_mode():
    x = torch.tensor([0x037F8045, -0x5F0E3D2D], dtype=torch.int32)
    out = run("scalars.prmt", (2048, 1, 1), (32, 1, 1), [x], (65536 + 24,)).view(numpy.uint8)
    data = x.numpy().view(numpy.uint8)
    selector = numpy.arange(65536)[:, None] >> numpy.array([0, 4, 8, 12])
    chosen = data[selector & 7]
    signs = numpy.where(chosen & 128, 255, 0)
    assert (out[: 4 * 65536].reshape(-1, 4) == numpy.where(selector & 8, signs, chosen)).all()
    places = {  # bytes from the lowest, for selectors 0 to 3
        "f4e": ["0123", "1234", "2345", "3456"],
        "b4e": ["0765", "1076", "2107", "3210"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["0123", "1123", "2223", "3333"],
        "ecr": ["0000", "0111", "0122", "0123"],
        "rc16": ["0101", "2323", "0101", "2323"],
    }
    wanted = [[int(c) for c in word] for words in places.values() for word in words]
    assert (out[4 * 65536 :].reshape(-1, 4) == data[numpy.array(wanted)]).all()


def _words(count: int) -> numpy.ndarray:
    edges = [0, 1, -1, 2, 31, 32, 33, 2**31 - 1, -(2**31), 255, -256, 65535]
    drawn = numpy.random.randint(-(2**31), 2**31, count - len(edges))
    return numpy.concatenate([edges, drawn])


def test_integers():
    n = 256
    a, b = _words(n), numpy.roll(_words(n), 5)
    inputs = [torch.from_numpy(v.astype(numpy.int32)) for v in (a, b)]
    out = run("scalars.integers", (n // 32, 1, 1), (32, 1, 1), inputs, (14, n), after=(n,))
    truth = numpy.array([_integers(int(x), int(y)) for x, y in zip(a, b, strict=True)]).T
    for row in range(14):
        assert (out[row].view(numpy.uint32) == truth[row].astype(numpy.uint32)).all(), row


def _integers(a: int, b: int) -> list[int]:
    """What `integers` computes, in integers without end; modulo 2^32."""
    ua, ub, odd = a % 2**32, b % 2**32, b | 1
    both, shift, right = ub << 32 | ua, b % 32, b & 31

    def quotient(x, y):
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)

    field = (ua >> right) % 2**11 if a >= 0 else ((a >> right) % 2**11)
    field = field - 2**11 if field & 2**10 else field
    clear = ~(0x1FF << (a & 15))
    results = [
        a * b >> 32,
        ua * ub >> 32,
        a * b >> 13,
        both << shift >> 32,
        both >> right,
        (32 - ua.bit_length()) * 100 + ub.bit_count(),
        int(f"{ua:032b}"[::-1], 2),
        a * b - quotient(a * b, odd) * odd,
        quotient(a, odd),
        ua // (ub | 1),
        field,
        (ub & clear) | ((ua & 0x1FF) << (a & 15)),
        abs((a & 65535) - (b & 65535)) + b,
        max(-(2**31), min(2**31 - 1, a + b)),
    ]
    return [value % 2**32 for value in results]


def _ulps(value, truth) -> float:
    return float((numpy.abs(value - truth) / numpy.spacing(numpy.abs(truth).astype("f4"))).max())


def test_quotients():
    """The bounds are those that the PTX manual states for each instruction."""
    n = 4096
    x = torch.exp(torch.randn(n) * 8)
    y = torch.randn(n) * torch.exp(torch.randn(n))
    out = run(
        *("scalars.quotients", (n // 64, 1, 1), (64, 1, 1), [x, y], (9, n), torch.float32),
        after=(n,),
    )
    a, b = x.numpy(), y.numpy()
    wide_a, wide_b = a.astype("f8"), b.astype("f8")
    assert (out[0] == a / b).all()
    assert (out[1] == numpy.sqrt(a)).all()
    assert (out[2] == numpy.float32(1) / b).all()
    fused = torch.addcmul(
        -x.double(), x.double(), y.double()
    )  # one rounding more, below what float32 sees
    assert _ulps(out[3], fused.numpy()) <= 0.5000001
    assert (out[4] == (wide_a * wide_b + 1 / 3).astype("f4")).all()
    assert _ulps(out[5], wide_a / wide_b) <= 2
    assert _ulps(out[6], 1 / numpy.sqrt(wide_a)) <= 2
    assert _ulps(out[7], numpy.exp2(wide_b)) <= 2
    assert numpy.abs(out[8] - numpy.log2(wide_a)).max() <= 2.0**-22 * numpy.abs(out[8]).max()


def _rounded(value: numpy.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """float64 rounded once, to nearest even: numpy does so for halves, bits do so for bfloat16."""
    if dtype == torch.float16:
        with numpy.errstate(over="ignore"):
            return torch.from_numpy(value.astype(numpy.float16))
    step = numpy.ldexp(1.0, numpy.maximum(numpy.frexp(value)[1], -125) - 8)
    with numpy.errstate(invalid="ignore"):
        nearest = numpy.where(numpy.isfinite(value), numpy.rint(value / step) * step, value)
    return torch.from_numpy(nearest).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_of_16_bits_rounds_once(dtype):
    n = 2048
    a, b, c = torch.randn(3, n, 2).mul(torch.exp(torch.randn(3, n, 2) * 3)).to(dtype)
    for place, value in enumerate([float("nan"), float("inf"), -0.0]):
        a[place], b[7 + place] = value, value
    name = "half" if dtype == torch.float16 else "bf16"
    with Memory() as memory:
        out = torch.empty(8, n, 2, dtype=dtype)
        kernel = module("scalars")[f"{name}_arithmetic"]
        memory.launch(kernel, (n // 64, 1, 1), (64, 1, 1), a, b, c, out, n)
    x, y, z = (v.double().numpy() for v in (a, b, c))
    fused = _rounded(x * y + z, dtype)
    truth = [
        *(
            _rounded(x + y, dtype),
            _rounded(x * y, dtype),
            fused,
            torch.fmax(a, b),
            torch.fmin(a, b),
        ),
        *(torch.maximum(a, b), torch.where(fused.isnan(), fused, fused.clamp_min(0)), a.abs()),
    ]
    for row, wanted in enumerate(truth):
        torch.testing.assert_close(out[row], wanted, rtol=0, atol=0, equal_nan=True, msg=f"{row}")


def test_every_half_and_bfloat16_widens():
    bits = torch.arange(65536).to(torch.int16)
    with Memory() as memory:
        half, bf16 = torch.empty(2, 65536)
        memory.launch(module("scalars")["widen"], (512, 1, 1), (128, 1, 1), half, bf16)
    torch.testing.assert_close(
        half, bits.view(torch.float16).float(), rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(
        bf16, bits.view(torch.bfloat16).float(), rtol=0, atol=0, equal_nan=True
    )


def _around(dtype: torch.dtype) -> torch.Tensor:
    """Floats at and around every point where rounding to 16 bits changes: each value and each midpoint, +-1 ulp."""
    values = torch.arange(65536).to(torch.int16).view(dtype).float()
    values = values[values.isfinite()].unique()
    midpoints = ((values[1:].double() + values[:-1].double()) / 2).float()
    points = torch.cat([values, midpoints])
    up, down = (torch.nextafter(points, torch.tensor(v)) for v in (float("inf"), -float("inf")))
    special = torch.tensor(
        [float("inf"), -float("inf"), float("nan"), 65520.0, 3.4e38, 1e-45, -0.0]
    )
    return torch.cat([points, up, down, special])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_rounding_to_16_bits(dtype):
    x = _around(dtype)
    x = torch.cat([x, x.new_zeros(-len(x) % 128)])
    n = len(x)
    with Memory() as memory:
        out = torch.empty(4, n, dtype=torch.int16)
        memory.launch(module("scalars")["narrow"], (n // 128, 1, 1), (128, 1, 1), x, out, n)
    nearest, cut = (out[row + 2 * (dtype == torch.bfloat16)].view(dtype) for row in (0, 1))
    torch.testing.assert_close(nearest, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    bits = x.to(dtype).view(torch.int16)
    beyond = x.to(dtype).float().abs() > x.abs()  # rounded away from zero: the pattern before it
    towards_zero = torch.where(beyond, bits - 1, bits).view(dtype)
    torch.testing.assert_close(cut, towards_zero, rtol=0, atol=0, equal_nan=True)


def test_conversions_of_integers():
    x = torch.randn(256) * torch.exp(torch.randn(256) * 12)
    x[:8] = torch.tensor([0.5, 1.5, -2.5, 3e9, -3e9, 1e20, float("nan"), -0.7])
    y = torch.from_numpy(_words(256)) * torch.from_numpy(_words(256))
    out = run(
        *("scalars.convert", (8, 1, 1), (32, 1, 1), [x, y], (8, 256), torch.int64), after=(256,)
    )
    wide = numpy.nan_to_num(x.double().numpy(), nan=0.0)
    low, high = -(2.0**31), 2.0**31 - 1
    for row, rounding in enumerate([numpy.rint, numpy.trunc, numpy.floor]):
        assert (out[row] == numpy.clip(rounding(wide), low, high)).all(), row
    assert (out[3] == numpy.clip(numpy.ceil(wide), 0, 2.0**32 - 1)).all()
    saturated = [max(-(2**63), min(2**63 - 1, int(v))) for v in numpy.rint(wide)]
    saturated[6] = -(2**63)  # NaN is 0 in 32 bits and the lowest number in 64
    assert out[4].tolist() == saturated
    assert (out[5].astype(numpy.int32).view("f4") == y.numpy().astype("f4")).all()
    assert (out[6].view("f8") == y.numpy().astype("f8")).all()
    assert (out[7] == y.numpy().clip(-128, 127)).all()
