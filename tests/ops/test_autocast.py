"""LN in float32 of a product in a half, and torch.autocast, which makes it of a model in float32: as torch's own
modules, it casts the products and leaves the residual stream.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import harness
from bertfast import dispatch
from bertfast.dispatch.calls import key_of
from bertfast.ops._weights import RoundedWeight
from gpu_code.backends import GPU_BACKENDS, running

HALF, WIDE = torch.bfloat16, torch.float32
PRODUCT = ("x", "weight", "bias")
BESIDE = ("residual", "ln_weight", "ln_bias")
OPERATIONS = ("linear_layernorm", "gelu_layernorm")
PRODUCTS = ("qkv_projection", "linear_gelu", *OPERATIONS, "masked_cross_entropy")
DIRECTIONS = ("forward", "backward")
either = pytest.mark.parametrize("operation", OPERATIONS)


def mixed_cases(operation):
    return [case for case in harness.cases(operation) if case.mixed]


def mixed(operation):
    return next(case for case in harness.cases(operation) if case.name == "mixed")


def inputs_of(operation, **dtypes):
    """The inputs of the mixed case in float32, but those that are named in another dtype."""
    inputs = harness.make_inputs(operation, mixed(operation), WIDE)
    return inputs | {name: inputs[name].to(dtype) for name, dtype in dtypes.items()}


def run(operation, inputs, autocast=None):
    """(the result, the gradient of every floating-point input by name)."""
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in inputs.items()
        if torch.is_tensor(value) and value.is_floating_point()
    }
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        out = harness.public(operation)(**inputs | leaves)
    gradient = harness.make_gradient(mixed(operation), out)
    gradients = torch.autograd.grad(out, list(leaves.values()), gradient)
    return out, dict(zip(leaves, gradients, strict=True))


@either
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("backend", ["cpu", *GPU_BACKENDS, "eager", "reference"])
def test_dtypes(operation, backend, p):
    """Of what each backend gives: the product's of the product's, float32 of all beside it."""
    case = replace(mixed(operation), p=p)
    saved = {"linear_layernorm": WIDE, "gelu_layernorm": HALF}[operation]  # z, the pre-activation
    forward, backward = (
        harness.arguments(operation, direction, case, HALF) for direction in DIRECTIONS
    )
    with running(backend), dispatch.use_backend(backend):
        if reason := dispatch.reasons(forward)[backend]:
            pytest.skip(reason)
        results = harness.op(operation, "forward")(*forward)
        assert [result.dtype for result in results] == [WIDE, saved, WIDE, WIDE]
        results = harness.op(operation, "backward")(*backward)
        beside = [WIDE] * (len(results) - len(PRODUCT))
        assert [result.dtype for result in results] == [HALF] * len(PRODUCT) + beside


@either
def test_one_dtype_for_all_is_not_enough(operation):
    """What computes mixed cases in the product's dtype alone breaks the accuracy check."""

    def narrow(**inputs):
        inputs = {k: v.to(HALF) if k in BESIDE else v for k, v in inputs.items()}
        return getattr(harness.formulas, operation)(**inputs)[0].to(WIDE)

    def everywhere(check):
        for case in mixed_cases(operation):
            check(operation, case, HALF, narrow)

    for check in (harness.check_function, harness.check_gradients):
        with pytest.raises(AssertionError):
            everywhere(check)


@either
def test_autocast_casts_the_product_alone(operation):
    inputs = inputs_of(operation)
    out, gradients = run(operation, inputs, autocast=HALF)
    expected, mixed_gradients = run(operation, inputs_of(operation, **dict.fromkeys(PRODUCT, HALF)))
    assert out.dtype is WIDE
    assert torch.equal(out, expected)
    for name, gradient in gradients.items():
        assert gradient.dtype is WIDE
        assert torch.equal(gradient, mixed_gradients[name].to(WIDE)), name


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 15, 150])
@pytest.mark.parametrize("operation", PRODUCTS)
def test_no_weight_is_copied_without_gradients(operation, tokens, half, monkeypatch):
    """The kernels round what they read, to the very bits of the copy that training makes."""
    inputs = harness.make_inputs(
        operation, harness.Case("rounded", (tokens,), 70, 60, heads=2), WIDE
    )
    weights = [name for name in ("weight", "wq", "wk", "wv") if name in inputs]
    leaves = {name: inputs[name].clone().requires_grad_() for name in weights}
    compute = harness.public(operation)
    with torch.autocast("cpu", half):
        expected = compute(**inputs | leaves)
        monkeypatch.setattr(RoundedWeight, "unpack", None)
        with torch.no_grad():
            first = compute(**inputs | leaves)
            leaves[weights[0]].data[:, 3].add_(1)
            second = compute(**inputs | leaves)
    assert torch.equal(first, expected.detach())
    assert not torch.equal(second, first)  # a write shows in the next call


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"residual": HALF}, WIDE),
        ({"ln_weight": HALF, "ln_bias": HALF}, WIDE),
        (dict.fromkeys(BESIDE, HALF), HALF),
        (dict.fromkeys(BESIDE, torch.float16), WIDE),
        (dict.fromkeys((*PRODUCT, *BESIDE), torch.float16), WIDE),
        (dict.fromkeys((*PRODUCT, *BESIDE), torch.float64), torch.float64),
    ],
)
def test_autocast_takes_the_widest_dtype_beside_the_product(given, expected):
    inputs = inputs_of("linear_layernorm", **given)
    out, gradients = run("linear_layernorm", inputs, autocast=HALF)
    assert out.dtype is expected
    assert all(gradients[name].dtype is inputs[name].dtype for name in gradients)


@either
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mixed_dtypes_are_measured_apart(operation, direction):
    case = harness.cases(operation)[1]
    args = harness.arguments(operation, direction, case, HALF)
    beside = {name: getattr(args, name).to(WIDE) for name in BESIDE if name in args._fields}
    one, two = key_of(args), key_of(args._replace(**beside))
    assert one._replace(ln_dtype="float32") == two
    assert one.text().replace(" bfloat16 ", " bfloat16+float32 ") == two.text()


@either
def test_one_graph_under_autocast(operation):
    def function(**inputs):
        with torch.autocast("cpu", HALF):
            return harness.public(operation)(**inputs)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = inputs_of(operation)
    inputs["weight"] = inputs["weight"].clone().requires_grad_()
    outs = [f(**inputs) for f in (function, compiled)]
    assert torch.equal(*outs)
    assert torch.equal(*(torch.autograd.grad(out.sum(), inputs["weight"])[0] for out in outs))
