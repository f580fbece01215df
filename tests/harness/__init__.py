"""The parity harness of tests and benchmarks: one list of cases an operation. The check: `bertfast.tuning.accuracy`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bertfast import dispatch, ops
from bertfast.ops._contract import CONTRACTS
from bertfast.tuning import bounds
from bertfast.tuning.accuracy import Expected, compare
from bertfast.tuning.inputs import make_gradient, make_inputs

from . import formulas, seeds
from .cases import CASES, Case, timed_cases
from .mutations import mutations
from .near import near

__all__ = [
    "CASES",
    "OPERATIONS",
    "WRONG_IDS",
    "Case",
    "Expected",
    "arguments",
    "cases",
    "check_backward",
    "check_forward",
    "check_function",
    "check_gradients",
    "compare",
    "compare_gradients",
    "differentiate",
    "expect",
    "make_gradient",
    "make_inputs",
    "mutations",
    "near",
    "op",
    "other_bits",
    "public",
    "refusal",
    "refuses",
    "seeds",
    "timed_cases",
]

OPERATIONS = tuple(CASES)
WRONG_IDS = (  # for three sequences, and what the message says
    (torch.zeros(2).long(), r"expected None or torch.int64 \[3\] on cpu.*got torch.int64 \[2\]"),
    (torch.zeros(3).int(), r"expected .*got torch.int32 \[3\] on cpu"),
    (torch.zeros(3, dtype=torch.int64, device="meta"), "expected .*on meta"),
)


def cases(operation: str) -> list[Case]:
    """The parity cases of an operation (the sizes for benchmarks: `timed_cases`)."""
    return CASES[operation]


def public(operation: str) -> Callable[..., Tensor]:
    """The public function of an operation."""
    return getattr(ops, operation)


def check_forward(
    operation: str,
    case: Case,
    dtype: torch.dtype,
    backend: str,
    device: torch.device | str = "cpu",
    tf32: bool = False,
) -> None:
    """The result of a backend, and all that it saves for backward, by the accuracy check.

    tf32: the backend may compute float32 products in it; 10 bits of mantissa are float16's, so float16 is
    what eager torch computes in.
    """
    inputs = make_inputs(operation, case, dtype, device)
    expected = _expected(operation, case, dtype, tf32)[0]
    label = f"{operation} {case} {dtype} {backend}"
    with dispatch.use_backend(backend), torch.no_grad():
        compare(
            f"{label}: {CONTRACTS[operation].results[0]}", public(operation)(**inputs), expected[0]
        )
        results = _forward_op(operation, inputs)
    for name, result, wanted in zip(CONTRACTS[operation].results, results, expected, strict=True):
        compare(f"{label}, saving: {name}", result, wanted)


def check_backward(
    operation: str,
    case: Case,
    dtype: torch.dtype,
    backend: str,
    forward: str | None = None,
    device: torch.device | str = "cpu",
    tf32: bool = False,
) -> None:
    """Every gradient of a backend, from what the forward of the backend `forward` (the same if
    None) saved.
    """
    label = f"{operation} {case} {dtype}, backward {backend} of forward {forward or backend}"

    def function(**inputs):
        with dispatch.use_backend(forward or backend):
            return public(operation)(**inputs)

    with dispatch.use_backend(backend):
        check_gradients(operation, case, dtype, function, label, device, tf32)


def check_function(
    operation: str, case: Case, dtype: torch.dtype, function: Callable[..., Tensor]
) -> None:
    """The result of any function with the public function's arguments."""
    expected = _expected(operation, case, dtype)[0][0]
    compare(
        f"{operation} {case} {dtype}", function(**make_inputs(operation, case, dtype)), expected
    )


def check_gradients(
    operation: str,
    case: Case,
    dtype: torch.dtype,
    function: Callable[..., Tensor],
    label: str = "",
    device: torch.device | str = "cpu",
    tf32: bool = False,
) -> None:
    """The gradients of any differentiable function with the public function's arguments."""
    found = differentiate(operation, case, dtype, function, device)
    compare_gradients(operation, case, dtype, found, label, tf32)


def differentiate(
    operation: str,
    case: Case,
    dtype: torch.dtype,
    function: Callable[..., Tensor],
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The result of a function, named out, and its gradient for every floating-point argument."""
    inputs, leaves = _leaves(make_inputs(operation, case, dtype, device))
    out = function(**inputs)
    gradient = make_gradient(case, out)
    found = torch.autograd.grad(out, list(leaves.values()), gradient, materialize_grads=True)
    return {"out": out.detach(), **dict(zip(leaves, found, strict=True))}


def compare_gradients(
    operation: str,
    case: Case,
    dtype: torch.dtype,
    found: dict[str, Tensor],
    label: str = "",
    tf32: bool = False,
) -> None:
    """What `differentiate` returned, by the accuracy check."""
    for name, expected in _expected(operation, case, dtype, tf32)[1].items():
        compare(f"{label or operation}: gradient of {name}", found[name], expected)


def other_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """The names whose tensors differ in a bit; a NaN equals itself."""
    return [name for name in first if not torch.equal(_bits(first[name]), _bits(second[name]))]


def _bits(tensor: Tensor) -> Tensor:
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(width)


def refusal(
    operation: str,
    direction: str,
    case: Case,
    dtype: torch.dtype,
    backend: str,
    device: torch.device | str = "cpu",
) -> str | None:
    """Why the backend does not compute this case, in the words of its supports(); None if it does."""
    return dispatch.reasons(arguments(operation, direction, case, dtype, device=device))[backend]


def refuses(operation: str, backend: str, *args) -> str | None:
    """Why the backend does not compute the forward of these arguments, or None."""
    return dispatch.reasons(CONTRACTS[operation].forward(*args))[backend]


def expect(operation: str, case: Case, dtype: torch.dtype, tf32: bool = False) -> None:
    """Compute what the next checks of this case compare with, on the CPU; they would do it themselves."""
    _expected(operation, case, dtype, tf32)


def arguments(
    operation: str,
    direction: str,
    case: Case,
    dtype: torch.dtype,
    save: bool = True,
    device: torch.device | str = "cpu",
) -> tuple:
    """The call of a backend for a case: the arguments of the op, in order."""
    contract = CONTRACTS[operation]
    named = {**make_inputs(operation, case, dtype, device), "save": save}
    if direction == "backward":
        with dispatch.use_backend("reference"):
            results = _forward_op(operation, make_inputs(operation, case, dtype, device))
        named |= dict(zip(contract.results, results, strict=True))
        named |= {f"d{contract.results[0]}": make_gradient(case, results[0])}
        named |= {"needs": [True] * len(contract.gradients)}
    kind = getattr(contract, direction)
    return kind(*(named[name] for name in kind._fields))


def op(operation: str, direction: str) -> torch._ops.OpOverload:
    """The torch.library op `bertfast::<operation>_fwd` or `_bwd`."""
    suffix = {"forward": "fwd", "backward": "bwd"}[direction]
    return getattr(torch.ops.bertfast, f"{operation}_{suffix}").default


def _forward_op(operation: str, inputs: dict) -> tuple[Tensor, ...]:
    forward = op(operation, "forward")
    save = {"save": True} if forward._schema.arguments[-1].name == "save" else {}
    results = forward(**inputs, **save)
    return results if isinstance(results, tuple) else (results,)


def _leaves(inputs: dict) -> tuple[dict, dict[str, Tensor]]:
    """(the inputs, the floating-point ones among them), the latter asking for a gradient."""
    floating = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return {**inputs, **floating}, floating


def _plain(
    operation: str, case: Case, dtype: torch.dtype, computed_in: torch.dtype
) -> tuple[tuple[Tensor, ...], dict]:
    """Results and gradients of the torch formula on the inputs in `dtype`, computed in another."""
    inputs = make_inputs(operation, case, dtype)
    inputs, leaves = _leaves(inputs if computed_in == dtype else _cast(inputs, computed_in))
    results = getattr(formulas, operation)(**inputs)
    gradient = make_gradient(case, results[0].to(case.ln_dtype(dtype))).to(results[0].dtype)
    gradients = torch.autograd.grad(results[0], list(leaves.values()), gradient)
    return tuple(result.detach() for result in results), dict(zip(leaves, gradients, strict=True))


def _cast(inputs: dict, dtype: torch.dtype) -> dict:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


@functools.lru_cache(maxsize=2)
def _expected(
    operation: str, case: Case, dtype: torch.dtype, tf32: bool = False
) -> tuple[list[Expected], dict[str, Expected]]:
    """What to expect of each result and of each gradient."""
    results, gradients = _plain(operation, case, dtype, torch.float64)
    peer = torch.float16 if tf32 else dtype
    eager_results, eager_gradients = _plain(operation, case, dtype, peer)
    eager_results = tuple(result.to(peer) for result in eager_results) if tf32 else eager_results
    dout = make_gradient(case, eager_results[0].to(case.ln_dtype(dtype))).double()
    sizes, gradient_sizes = getattr(bounds, operation)(
        dout, **_cast(make_inputs(operation, case, dtype), torch.float64)
    )
    triples = [Expected(*item) for item in zip(results, eager_results, sizes, strict=True)]
    return triples, {
        name: Expected(exact, eager_gradients[name], gradient_sizes[name])
        for name, exact in gradients.items()
    }
