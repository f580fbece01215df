"""What the operations' tests share: their parameters, and skips in the words of supports().

A test module names its OPERATION; arguments called case, dtype, backend, pair and mutation are
filled in for it.
"""

from __future__ import annotations

import pytest
import torch

from bertfast import dispatch, testing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAIRS = [(forward, backward) for forward in dispatch.ORDER for backward in dispatch.ORDER]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The inputs are small: a second thread only waits. That results do not depend on threads has
    its own test.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc):
    operation = getattr(metafunc.module, "OPERATION", None)
    if operation is None:
        return
    values = {
        "case": {str(case): case for case in testing.cases(operation)},
        "mutation": dict(testing.mutations(operation)),
        "dtype": DTYPES,
        "pair": {"-".join(pair): pair for pair in PAIRS},
        "backend": {form: form for form in dispatch.ORDER},
        "direction": {"forward": "forward", "backward": "backward"},
    }
    for name, choices in values.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, list(choices.values()), ids=list(choices))


@pytest.fixture
def check_forward():
    """testing.check_forward, or a skip where the form refuses."""

    def check(operation, case, dtype, backend):
        skip_where_refused(operation, "forward", case, dtype, backend)
        testing.check_forward(operation, case, dtype, backend)

    return check


@pytest.fixture
def check_backward():
    """testing.check_backward for (form of the forward, form of the backward), or a skip where one
    refuses.
    """

    def check(operation, case, dtype, pair):
        for direction, form in zip(("forward", "backward"), pair, strict=True):
            skip_where_refused(operation, direction, case, dtype, form)
        testing.check_backward(operation, case, dtype, backend=pair[1], forward=pair[0])

    return check


@pytest.fixture
def check_mutation():
    """The two-error rule must reject the function: its result or its gradients, in some case at
    fp32.
    """

    def check(operation, function):
        for case in testing.cases(operation):
            for check in (testing.check_function, testing.check_gradients):
                try:
                    check(operation, case, torch.float32, function)
                except AssertionError:
                    return
        pytest.fail(f"{operation}: no case tells this variant from the right one")

    return check


@pytest.fixture
def check_op():
    """torch.library.opcheck of both ops, with and without dropout and saved tensors."""

    def check(operation, direction):
        for case in testing.cases(operation):
            if case.name not in ("odd", "dropout", "embeds", "no-bias"):
                continue
            for save in (True, False):
                args = testing.arguments(operation, direction, case, torch.float32, save)
                if direction == "forward" and save:
                    args = tuple(_asks_for_gradient(value) for value in args)
                torch.library.opcheck(testing.op(operation, direction), args)

    return check


def skip_where_refused(operation, direction, case, dtype, form):
    reason = testing.refusal(operation, direction, case, dtype, form)
    if reason is not None:
        pytest.skip(f"{operation}, {direction}, {form}: {reason}")


def _asks_for_gradient(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if floating else value
