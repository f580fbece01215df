"""tanh of the pooler: its error, its edges, its gradients, and who computes it."""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch, extension
from bertfast.core.heads import pool
from bertfast.core.weights import Linear
from bertfast.ops._tanh import tanh
from harness import near, seeds

NATIVE = pytest.mark.skipif(extension.cpu is None, reason=str(extension.REASON))


def numbers(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=seeds.generator(1))


@NATIVE
def test_error(variant):
    x = torch.cat([torch.linspace(-12, 12, 100_001), 1e-3 * numbers(1000)])
    exact, y = x.double().tanh(), tanh(x)
    size = exact.abs().float()
    step = torch.nextafter(size, torch.tensor(2.0)) - size
    assert ((y - exact).abs() / step).max() < 1.5  # what the kernel's file says
    assert (y[:100_001].diff() >= 0).all()
    assert tanh(-x).equal(-y)


def test_edges():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([0.0, -0.0, inf, -inf, 3e38, -89.0, 1e-30, -1e-40, nan])
    y = tanh(x)
    assert y.tolist()[:6] == [0, 0, 1, -1, 1, -1]
    assert y[6:8].equal(x[6:8])
    assert y[8].isnan()
    assert y.signbit()[:8].equal(x.signbit()[:8])


def test_every_number_is_computed_wherever_it_stands():
    x = numbers(7, 40)
    one_by_one = torch.stack([tanh(number) for number in x.flatten()]).view(7, 40)
    for columns in range(41):  # whole vectors and what is left of one
        assert tanh(x[:, :columns]).equal(one_by_one[:, :columns])
    assert tanh(x.t()).equal(one_by_one.t())


def test_gradients():
    def grads(function, dtype):
        x = numbers(3, 50).to(dtype).requires_grad_()
        dout = numbers(2, 3, 50).to(dtype)
        y = function(x)
        (first,) = torch.autograd.grad(y, x, dout[0], create_graph=True)
        return y, first, *torch.autograd.grad(first, x, dout[1])

    exact, eager = (grads(torch.tanh, dtype) for dtype in (torch.float64, torch.float32))
    near("tanh and its gradients", grads(tanh, torch.float32), exact, eager)


def test_op():
    x = numbers(3, 50)
    for argument in (x, x.t(), x.clone().requires_grad_()):
        torch.library.opcheck(torch.ops.bertfast.tanh.default, (argument,))


@NATIVE
def test_who_computes(monkeypatch):
    x, weight, bias = numbers(2, 96), numbers(96, 96), numbers(96)
    want = pool(Linear(weight, bias), x)
    for other in (x.double(), x.bfloat16()):
        assert tanh(other).equal(other.tanh())
    with dispatch.use_backend("eager"):
        assert tanh(x).equal(x.tanh())
    monkeypatch.setattr(torch, "tanh", None)  # MKL's threads
    assert pool(Linear(weight, bias), x).equal(want)
