"""The backend eager: attention over a padded batch, where a stream is not one."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import harness
from bertfast import dispatch, ops
from bertfast.ops._contract import CONTRACTS
from bertfast.ops.attention.eager import PADDING


@pytest.fixture(autouse=True)
def _eager():
    with dispatch.use_backend("eager"):
        yield


def _stream(*lengths, surplus=0):
    """(qkv [T,3,2,8] that asks for a gradient, cu_seqlens), with rows after the last sequence."""
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return torch.randn(sum(lengths) + surplus, 3, 2, 8).requires_grad_(), starts


def test_rows_of_no_sequence():
    qkv, starts = _stream(5, 0, 4, surplus=3)
    out = ops.attention(qkv, starts, 6)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    with torch.no_grad():
        inference = ops.attention(qkv, starts, 6)
    for values in (out, gradient, inference):
        assert (values[9:] == 0).all()
        assert values[:9].ne(0).any(-1).all()
    exact, plain = (
        harness.formulas.attention(qkv.detach()[:9].to(dtype), starts, 6, 8**-0.5, 0.0, None, None)[
            0
        ]
        for dtype in (torch.float64, torch.float32)
    )
    for result in (out, inference):
        harness.near("attention", result[:9], exact, plain)


def test_nan_stays_in_its_sequence():
    qkv, starts = _stream(5, 2, 4)
    with torch.no_grad():
        qkv[5] = torch.nan
    out = ops.attention(qkv, starts, 5)
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    with torch.no_grad():
        inference = ops.attention(qkv, starts, 5)
    inside = torch.arange(11)
    inside = (inside >= 5) & (inside < 7)
    for values in (out, gradient, inference):
        assert values[inside].isnan().flatten(1).any(1).all()
        assert values[~inside].isfinite().all()


def test_nothing_is_read_on_the_host():
    """No value of a tensor becomes a number: what a GPU would have to wait for, and a capture forbids."""

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func not in (
                torch.ops.aten._local_scalar_dense.default,
                torch.ops.aten.nonzero.default,
            )
            return func(*args, **(kwargs or {}))

    qkv, starts = _stream(5, 2, 4)
    qkv, backend = qkv.detach(), dispatch.backends_of("attention")["eager"]
    with Reads():
        for save in (False, True):
            out, lse = backend.forward(qkv, starts, 5, 0.3, 0.0, None, None, save)
        backend.backward(torch.ones_like(out), qkv, out, lse, starts, 5, 0.3, 0.0, None, None)


def test_too_much_padding_is_refused():
    qkv, starts = _stream(*[1] * 40, 200)
    call = CONTRACTS["attention"].forward(qkv, starts, 200, 0.3, 0.0, None, None, False)
    assert dispatch.reasons(call)["eager"] == f"{41 * 200} padded tokens for 240 real ones"
    assert PADDING * 240 < 41 * 200
