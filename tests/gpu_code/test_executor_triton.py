"""Kernels that Triton compiles for sm_80, executed and held against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from gpu_code.kernels import proofs
from gpu_code.triton_driver import emulated
from harness import near

ORDERS = ("forward", "reversed", "shuffled")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_addition_is_exact(dtype, order):
    x, y = torch.randn(2, 1000).to(dtype)
    with emulated(order=order) as device:
        out = torch.empty(1000, dtype=dtype)
        proofs.add_kernel[(4,)](x, y, out, 1000, BLOCK=256)
    assert torch.equal(out, x + y)
    report = device.launches[0].report
    touched = 1000 * dtype.itemsize
    assert report.bytes_read["x_ptr"] == report.bytes_written["out_ptr"] == touched
    assert report.unwritten["out_ptr"] == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("columns", [257, 1024])
def test_softmax(columns, order):
    x = torch.randn(5, columns) * 4
    with emulated(order=order):
        out = torch.empty_like(x)
        proofs.softmax_kernel[(5,)](x, out, columns, BLOCK=1024)
    near("softmax", out, x.double().softmax(1), x.softmax(1))


@pytest.mark.parametrize("order", ORDERS)
def test_layernorm_forward_and_backward(order):
    rows, columns = 9, 300
    x, dout = torch.randn(2, rows, columns) + 1
    w, b = torch.randn(2, columns)
    with emulated(order=order):
        out, dx, mean, rstd = map(torch.empty, [(rows, columns), (rows, columns), rows, rows])
        dw = torch.zeros(columns)
        proofs.layernorm_kernel[(rows,)](x, w, b, out, mean, rstd, columns, BLOCK=512)
        proofs.layernorm_backward_kernel[(2,)](
            dout, x, w, mean, rstd, dx, dw, rows, columns, BLOCK=512
        )
    plain = []
    for dtype in (torch.float64, torch.float32):
        leaves = [value.to(dtype).requires_grad_() for value in (x, w)]
        result = torch.nn.functional.layer_norm(leaves[0], (columns,), leaves[1], b.to(dtype), 1e-5)
        plain.append([result, *torch.autograd.grad(result, leaves, dout.to(dtype))])
    near("layernorm", [out, dx, dw], *plain)


def as_multiplied(x: torch.Tensor) -> torch.Tensor:
    """What a tensor core sees: of a float32 the 10 leading bits of its fraction."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32) if x.dtype == torch.float32 else x


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dense", ["n", "k"])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_product(dtype, stages, dense, order):
    m, n, k = 70, 80, 144  # multiples of 16, for which Triton makes wide copies
    a = torch.randn(m, k).to(dtype)
    b = (torch.randn(k, n) if dense == "n" else torch.randn(n, k).t()).to(dtype)
    with emulated(order=order) as device:
        out = torch.empty(m, n)
        proofs.product_kernel[(2, 2)](
            *(a, b, out, m, n, k, k, *b.stride()),
            BLOCK_M=64,
            BLOCK_N=64,
            BLOCK_K=32,
            PRECISION="tf32",
            num_stages=stages,
        )
    a, b = as_multiplied(a), as_multiplied(b)
    near("product", out, a.double() @ b.double(), a.float() @ b.float())
    code = device.launches[0].asm["ptx"]
    assert "mma.sync" in code
    assert ("cp.async.wait_group" in code) == (stages > 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention(dtype, order):
    q, k, v = torch.randn(3, 2, 100, 32).to(dtype)
    with emulated(order=order):
        out = torch.empty_like(q)
        proofs.attention_kernel[(2, 2)](
            *(q, k, v, out, 100, 32**-0.5), HEAD=32, BLOCK_M=64, BLOCK_N=32
        )
    exact, eager = (
        (q.to(kind) @ k.to(kind).transpose(1, 2) * 32**-0.5).softmax(2) @ v.to(kind)
        for kind in (torch.float64, dtype)
    )
    near("attention", out, exact, eager)
