"""The backend `cuda:cublaslt`: products of a fake cuBLASLt that multiplies on the CPU, between executed kernels."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import harness
from bertfast import dispatch, extension, ops
from bertfast.dispatch import decisions
from bertfast.dispatch.calls import key_of
from bertfast.errors import UnsupportedError
from bertfast.ops import encoder
from gpu_code import cublaslt, cuda_driver, nvcc
from gpu_code.backends import allowing_tf32
from harness import Case, layers

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())

NAME, BF16 = "cuda:cublaslt", torch.bfloat16
LINE = {"backend": NAME, "microseconds": {NAME: 1.0, "cuda": 2.0}, "rejected": {}}
CASES = {
    "qkv_projection": [Case("three", (5, 0, 20), 64, 48, heads=2), Case("one", (1,), 24, 16)],
    "linear_gelu": [Case("gelu", (25,), 64, 96)],
    "linear_layernorm": [
        Case("dropout", (20, 0, 5), 96, 64, p=0.1),
        Case("mixed", (20, 5), 96, 64, mixed=True),
    ],
    "gelu_layernorm": [Case("plain", (25,), 64, 72), Case("mixed", (9,), 64, 72, mixed=True)],
}
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}
RUNS = [
    pytest.param(operation, case, dtype, id=f"{operation}-{case.name}-{dtype}")
    for operation, cases in CASES.items()
    for case in cases
    for dtype in DTYPES
    if not case.mixed or dtype in ("bf16", "fp16")
]


@pytest.fixture
def products():
    with cuda_driver.emulated() as device, cublaslt.present(device) as products:
        yield products


@pytest.mark.parametrize(("operation", "case", "dtype"), RUNS)
def test_parity(operation, case, dtype):
    tf32, gelu = dtype == "tf32", operation == "linear_gelu"  # whose forward is ours
    harness.expect(operation, case, DTYPES[dtype], tf32)  # outside the emulation
    weights = 3 if operation == "qkv_projection" else 1
    with (
        allowing_tf32(tf32),
        cuda_driver.emulated() as device,
        cublaslt.present(device) as products,
    ):
        harness.check_forward(operation, case, DTYPES[dtype], NAME, tf32=tf32)
        assert len(products) == (0 if gelu else 2 * weights)  # what is asked for, and what is saved
        harness.check_backward(operation, case, DTYPES[dtype], NAME, tf32=tf32)
    ours = [launch.name for launch in device.launches if "_tiles" in launch.name]
    assert len(ours) == (3 if gelu else 0)
    assert len(products) == (2 if gelu else 4 * weights + 1)
    assert cublaslt.library().fake_cublaslt_reductions() == 2  # parts of a sum stay in fp32


def _whole(*shape: int, **options) -> torch.Tensor:
    """Numbers whose products and sums are exact in float32."""
    return torch.randint(-4, 5, shape, **options).float()


def _qkv(x, needs=()):
    """The projection of x [T,32] to 3 x 24 features, and what it is made of."""
    weights, biases = [_whole(24, 32) for _ in range(3)], [_whole(24) for _ in range(3)]
    given = [x, *weights, *biases]
    for i in needs:
        given[i].requires_grad_()
    return given


@pytest.mark.parametrize(
    "needs", [(0,), (1, 3), (2, 5), (4, 6), (0, 5), (0, 1, 2, 3, 4, 5, 6)], ids=str
)
def test_only_what_is_wanted(needs, products):
    """Of x, three weights, three biases. A bias' gradient alone is summed by our kernel."""
    given, dout = _qkv(_whole(20, 32), needs), _whole(20, 3, 2, 12)
    found = []
    for name in ("reference", NAME):
        with dispatch.use_backend(name):
            out = ops.qkv_projection(*given, num_heads=2)
            grads = torch.autograd.grad(out, [given[i] for i in needs], dout)
        found.append((out, *grads))
    assert all(map(torch.equal, *found))
    of_weights = [i for i in needs if i in (1, 2, 3)]
    assert len(products) == 3 + len(of_weights) + (0 in needs)
    vectors = [product["vector"] for product in products[3 : 3 + len(of_weights)]]
    assert [v.count for v in vectors] == [i + 3 in needs for i in of_weights]


@pytest.mark.parametrize(
    "x", [_whole(20, 64)[:, :32], _whole(20, 64)[:, 32:], _whole(1, 33)[:, :32], _whole(20, 33)[:, 1:]],
    ids=["first half", "second half", "one row", "odd rows"],
)  # fmt: skip
def test_rows_that_lie_apart(x, products):
    given = _qkv(x)
    with torch.no_grad(), dispatch.use_backend("reference"):
        expected = ops.qkv_projection(*given, num_heads=2)
    odd = x.shape[0] > 1 and x.stride(0) == 33
    raises = pytest.raises(UnsupportedError, match="x: its rows are no multiples of 16 bytes")
    with torch.no_grad(), dispatch.use_backend(NAME), raises if odd else contextlib.nullcontext():
        assert torch.equal(ops.qkv_projection(*given, num_heads=2), expected)
        assert {product["d"].stride for product in products} == {
            3 * 24 * 4 if x.shape[0] > 1 else 96
        }


def test_refuses(products):
    x, weight, bias = _whole(20, 32), _whole(24, 32), _whole(28)
    reasons = {
        "features are no multiple of 16 bytes": (x, weight[:23], bias[:23]),
        "bias does not begin at a multiple": (x, weight, bias[1:25]),
        "x: its rows are": (x[:, :31], weight[:, :31].contiguous(), bias[:24]),
        "weight: its rows are": (x, _whole(24 * 32 + 1)[1:].view(24, 32), bias[:24]),
    }
    call = harness.arguments("linear_gelu", "forward", CASES["linear_gelu"][0], BF16, save=False)
    assert dispatch.reasons(call)[NAME] == "cuBLASLt's GELU is the tanh form"
    norm = {"ln_weight": torch.ones(24), "ln_bias": torch.ones(24), "eps": 1e-5}
    for reason, (x, weight, bias) in reasons.items():
        made = {name: v[: len(bias)] if name != "eps" else v for name, v in norm.items()}
        with dispatch.use_backend(NAME), pytest.raises(UnsupportedError, match=reason):
            ops.gelu_layernorm(x, weight, bias, **made)
    given = _qkv(_whole(20, 32))
    raises = pytest.raises(UnsupportedError, match="cuts a sum depends on the batch")
    with dispatch.use_backend(NAME), dispatch.batch_invariant(), raises:
        ops.qkv_projection(*given, num_heads=2)
    assert not products


def test_a_table_chooses_it(products):
    call = harness.arguments(
        "qkv_projection", "forward", CASES["qkv_projection"][0], torch.bfloat16, save=False
    )
    try:
        decisions.take_from_run({key_of(call).text(): LINE})
        assert dispatch.chosen_on_gpu(call) == NAME
    finally:
        decisions.take_from_run(None)
    assert dispatch.chosen_on_gpu(call) == "cuda"  # no card was timed


@pytest.mark.parametrize(
    ("kind", "recompute"), [("dropout", False), ("first rows, dropout", True)], ids=str
)
def test_all_layers_in_one_call(kind, recompute, monkeypatch):
    """By name, and where a table gives products to cuBLASLt here and there: the bits of the operations one by one."""
    monkeypatch.setattr(encoder, "through_library", lambda: False)
    weights, (x, batch), keys = layers.layers_of(BF16, 3), layers.stream((9, 0, 4), BF16), {}

    def of_table(call):
        keys.setdefault(key_of(call).text(), call)
        name = dispatch.chosen_on_gpu(call)
        return name, dispatch.backends_of(call.operation)[name]

    def run():
        return layers.both_ways(weights, x, batch, kind, recompute)

    try:
        with cuda_driver.emulated() as device, cublaslt.present(device) as products:
            with dispatch.use_backend(NAME):
                layers.same_bits(*run())
            every = len(products)
            monkeypatch.setattr(dispatch, "choose", of_table)
            device.execute = False
            run()
            device.execute = True
            assert len(products) == every  # no table: none of cuBLASLt's
            theirs = [
                key
                for key, call in keys.items()
                if call.operation in CASES and dispatch.reasons(call)[NAME] is None
            ]
            assert len(theirs) > 6
            for some in (theirs[::2], theirs[1::2]):
                before = len(products)
                decisions.take_from_run(dict.fromkeys(some, LINE))
                layers.same_bits(*run())
                assert before < len(products) < before + every
    finally:
        decisions.take_from_run(None)


class Native:
    """A projection of 17 rows by the module itself, over and over with the same memory."""

    def __init__(self, number=0):
        x, *rest = _qkv(_whole(17, 32))
        weights, biases = rest[:3], [bias + number / 4 for bias in rest[3:]]
        pairs = zip(weights, biases, strict=True)
        self.expected = torch.cat([x @ weight.t() + bias for weight, bias in pairs], 1)
        self.out, workspace = torch.empty(17, 72), torch.empty(33 << 20, dtype=torch.uint8)
        self.memory = x, weights, biases, workspace
        gpu = {"stream": cuda_driver.STREAM, "workspace": workspace.data_ptr(), "cublaslt": True}
        self.fields = {
            "x": x.data_ptr(), "weight": extension.pointers(weights), "bias": extension.pointers(biases),
            "out": self.out.data_ptr(), "rows": 17, "n": 24, "k": 32, "x_stride": 32, "weight_stride": [32] * 3,
            "weight_dtype": 0, "dtype": 0, "threads": 1, "gpu": gpu | {"tf32": False, "invariant": False, "used": 0},
        }  # fmt: skip

    def right(self) -> bool:
        self.out.fill_(torch.nan)
        cuda_driver.module().qkv_projection_fwd(self.fields)
        return torch.equal(self.out, self.expected)


def test_what_is_kept():
    """An algorithm and three layouts of each kind of product, and a handle; all else is taken back."""
    fake, native = cublaslt.library(), Native()
    counts = fake.fake_cublaslt_chosen, fake.fake_cublaslt_left, fake.fake_cublaslt_handles
    with cuda_driver.launching_nothing(), cublaslt.present() as products:
        assert native.right()
        before = [count() for count in counts]
        assert all(native.right() for _ in range(9))
    assert len(products) == 30
    assert [count() for count in counts] == before


def test_threads():
    """Each product has its own biases, though what is known of its kind is shared."""
    failed = []

    def work(number):
        native = Native(number)
        failed.extend(number for _ in range(50) if not native.right())

    with cuda_driver.launching_nothing(), cublaslt.present():
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


_ABSENT = """
import ctypes, sys
sys.path[:0] = sys.argv[1:2]
from gpu_code import cuda_driver
refuses = cuda_driver.module().cublaslt_refuses
assert refuses() == "no libcublasLt.so.13 or .12 is loaded"
ctypes.CDLL(sys.argv[2])
assert refuses()
ctypes.CDLL(sys.argv[3])
assert not refuses()
"""


def test_what_is_loaded_is_found(tmp_path):
    """Nothing; a library without the functions; one of CUDA 12 beside it."""
    (tmp_path / "empty.cpp").write_text("int nothing;\n")
    empty = cublaslt.build(source=tmp_path / "empty.cpp")
    arguments = [Path(__file__).parents[1], empty, cublaslt.build("libcublasLt.so.12")]
    cuda_driver.build()
    subprocess.run([sys.executable, "-c", _ABSENT, *map(str, arguments)], check=True)


def test_what_the_fake_refuses():
    """As the real one, or stricter: what the backend does not ask for is held against it."""
    fake, made = cublaslt.library(), ctypes.c_void_p()

    def layout(rows, columns, ld):
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(ld)
        status = fake.cublasLtMatrixLayoutCreate(ctypes.byref(made), 0, *sizes)
        return status or made.value

    assert layout(8, 4, 7) == layout(0, 4, 8) == 7
    a, b, d = layout(8, 16, 8), layout(16, 4, 16), layout(8, 4, 8)
    fake.cublasLtMatmulDescCreate(ctypes.byref(made), 68, 0)
    description = made.value
    fake.cublasLtMatmulPreferenceCreate(ctypes.byref(made))
    preference = made.value

    def of(kind, thing, attribute, value):
        setter = fake[f"cublasLt{kind}SetAttribute"]
        size = ctypes.c_size_t(ctypes.sizeof(value))
        return setter(ctypes.c_void_p(thing), attribute, ctypes.byref(value), size)

    def choose(*layouts):
        result, count = (ctypes.c_byte * 96)(), ctypes.c_int()
        given = map(ctypes.c_void_p, (1, description, *layouts, layouts[-1], preference))
        return fake.cublasLtMatmulAlgoGetHeuristic(*given, 1, result, ctypes.byref(count))

    assert choose(a, b, d) == 15  # no workspace was said
    assert of("MatmulPreference", preference, 1, ctypes.c_uint64(1 << 20)) == 0
    assert choose(a, b, d) == 0
    assert choose(b, a, d) == choose(a, b, a) == 7
    assert choose(a, b, layout(8, 4, 9)) == 15  # columns of 36 bytes
    assert of("MatmulDesc", description, 3, ctypes.c_int64(1)) == 7  # 4 bytes are asked
    assert of("MatmulDesc", description, 3, ctypes.c_int32(2)) == 7
    assert of("MatmulDesc", description, 3, ctypes.c_int32(0)) == 0
    assert of("MatmulDesc", description, 7, ctypes.c_uint32(32)) == 7  # its GELU
    assert of("MatmulDesc", description, 7, ctypes.c_uint32(4)) == 0
    assert choose(a, b, d) == 7  # a bias without its address
