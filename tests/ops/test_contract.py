"""What holds for every operation alike: gradients in float64, what is not differentiated, empty
streams, fast calls.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import harness
from bertfast import dispatch, ops
from bertfast.errors import UnsupportedError
from bertfast.ops import _weights
from bertfast.ops._contract import CONTRACTS

SMALL = harness.Case("small", (3, 0, 2), inner=5, outer=6, heads=2, p=0.25)
EMPTY = dataclasses.replace(SMALL, name="empty", lengths=(0, 0), p=0.0)
every_operation = pytest.mark.parametrize("operation", harness.OPERATIONS)


def _inputs(operation, case=SMALL, dtype=torch.float64):
    inputs = harness.make_inputs(operation, case, dtype)
    if operation == "embedding":
        inputs["padding_idx"] = -1  # its gradient is 0 by definition, not by calculus
        inputs |= {"position": inputs["position"][:9], "position_ids": inputs["position_ids"] % 9}
    return inputs


def _floating(inputs):
    return [
        name
        for name, value in inputs.items()
        if torch.is_tensor(value) and value.is_floating_point()
    ]


@every_operation
def test_gradients_by_finite_differences(operation):
    inputs = _inputs(operation)
    names = _floating(inputs)
    leaves = [inputs[name].clone().requires_grad_() for name in names]

    def function(*values):
        return harness.public(operation)(**inputs | dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(function, leaves)


@every_operation
def test_float64_is_computed_in_float64(operation):
    for case in harness.cases(operation)[:2]:
        harness.check_forward(operation, case, torch.float64, "auto")
        saved = harness.op(operation, "forward")(
            *harness.arguments(operation, "forward", case, torch.float64)
        )
        saved = saved if isinstance(saved, tuple) else (saved,)
        assert all(result.dtype is torch.float64 for result in saved)


@every_operation
def test_each_gradient_alone(operation):
    """A gradient that is not wanted is not given, and the one that is has the same value."""
    inputs = _inputs(operation)
    names = _floating(inputs)

    def gradients(wanted):
        leaves = {name: inputs[name].clone().requires_grad_() for name in wanted}
        out = harness.public(operation)(**inputs | leaves)
        return torch.autograd.grad(out.sum(), list(leaves.values()))

    together = dict(zip(names, gradients(names), strict=True))
    for name in names:
        assert torch.equal(gradients([name])[0], together[name])
    if len(names) > 1:
        args = list(harness.arguments(operation, "backward", SMALL, torch.float64))
        args[-1] = [False] * len(args[-1])
        assert all(gradient.numel() == 0 for gradient in harness.op(operation, "backward")(*args))


@every_operation
def test_double_backward_raises(operation):
    inputs = _inputs(operation)
    name = _floating(inputs)[0]
    leaf = inputs[name].clone().requires_grad_()
    out = harness.public(operation)(**inputs | {name: leaf}).sum()
    (gradient,) = torch.autograd.grad(out, leaf, create_graph=True)
    with pytest.raises(UnsupportedError, match=f"{operation} cannot be differentiated twice"):
        torch.autograd.grad(gradient.square().sum(), leaf)


@every_operation
def test_a_tensor_changed_in_place_is_torchs_own_error(operation):
    inputs = _inputs(operation)
    name = "ln_weight" if operation == "embedding" else _floating(inputs)[0]
    changed = inputs[name].clone().requires_grad_()
    out = harness.public(operation)(**inputs | {name: changed}).sum()
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@every_operation
def test_nothing_saved_cannot_be_differentiated(operation):
    schema = harness.op(operation, "forward")._schema
    if schema.arguments[-1].name != "save":
        results = CONTRACTS[operation].results  # whose second would want the flag
        assert len(results) == 1 or operation == "masked_cross_entropy"
        return
    args = list(harness.arguments(operation, "forward", SMALL, torch.float64, save=False))
    index = next(
        i for i, value in enumerate(args) if torch.is_tensor(value) and value.is_floating_point()
    )
    args[index] = args[index].clone().requires_grad_()
    out, *saved = harness.op(operation, "forward")(*args)
    assert all(tensor.numel() == 0 for tensor in saved)
    with pytest.raises(UnsupportedError, match="save=False"):
        out.sum().backward()


@every_operation
@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton", "reference"])
@pytest.mark.parametrize("grad", [False, True])
def test_no_tokens(operation, backend, grad):
    inputs = harness.make_inputs(operation, EMPTY, torch.float32)
    reason = harness.refusal(operation, "forward", EMPTY, torch.float32, backend)
    if reason is not None:
        pytest.skip(reason)
    leaves = {name: inputs[name].clone().requires_grad_(grad) for name in _floating(inputs)}
    with dispatch.use_backend(backend):
        out = harness.public(operation)(**inputs | leaves)
    assert out.numel() == 0 or (operation == "masked_cross_entropy" and out.isnan())
    if grad:
        for gradient in torch.autograd.grad(out.sum(), list(leaves.values())):
            assert (gradient == 0).all()


@every_operation
def test_inference_calls_the_form_directly(operation, monkeypatch):
    """Without grad and without a trace no torch.ops call is made, and nothing is saved."""
    inputs = _inputs(operation, dtype=torch.float32)
    with torch.no_grad():
        expected = harness.public(operation)(**inputs)
        monkeypatch.setattr(torch.ops.bertfast, f"{operation}_fwd", None)
        assert torch.equal(harness.public(operation)(**inputs), expected)
    frozen = {name: inputs[name].requires_grad_(False) for name in _floating(inputs)}
    assert torch.equal(harness.public(operation)(**inputs | frozen), expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])  # prepacked models live on CPUs
@pytest.mark.parametrize(
    "operation", ["qkv_projection", "linear_gelu", "linear_layernorm", "gelu_layernorm"]
)
def test_prepacked_weights(operation, backend):
    case = harness.cases(operation)[1]
    reason = harness.refusal(operation, "forward", case, torch.float32, "cpu")
    if reason is not None:
        pytest.skip(reason)
    inputs = harness.make_inputs(operation, case, torch.float32)
    names = [name for name in ("weight", "wq", "wk", "wv") if name in inputs]
    prepacked = inputs | {name: _weights.prepack(inputs[name]) for name in names}
    with dispatch.use_backend(backend):
        assert torch.equal(
            harness.public(operation)(**prepacked), harness.public(operation)(**inputs)
        )
    x = inputs["x"].clone().requires_grad_()
    with pytest.raises(UnsupportedError, match="prepacked"):
        harness.public(operation)(**prepacked | {"x": x})


def test_modes_that_watch_torch_see_the_operations():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Names() as names:
        ops.linear_gelu(torch.ones(2, 3), torch.ones(3, 3), torch.ones(3))
    assert "bertfast.linear_gelu_fwd.default" in names.seen
