"""What the operations' tests share: their parameters, and skips in the words of supports().

A test module names its OPERATION; arguments called case, dtype, backend, pair and mutation are
filled in for it. The backends of a GPU are executed on CPU tensors (gpu_code), and on a GPU run as
they are (--device cuda).
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import harness
from gpu_code.backends import GPU_BACKENDS, allowing_tf32, running

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TF32 = "tf32"  # float32 whose products may round their inputs
HOST_BACKENDS = ("cpu", "reference", "eager")
# that have torch's own product as a choice
WITH_MATMUL = ("qkv_projection", "linear_gelu", "linear_layernorm", "gelu_layernorm")
# Compiling is slow: in these dtypes the cases that a Triton kernel's code can tell apart.
EXECUTED_CASES = {
    "bf16": None,
    "fp16": ("odd", "base", "dropout", "embeds", "sharp", "mixed"),
    "fp32": ("tiny", "odd", "dropout"),
    TF32: ("odd", "base", "dropout"),
}
# Of these, what `make test` leaves to `make test-all`: fp16 takes bf16's code with another type of products, and
# gpu_code/test_configurations.py holds every configuration of fp32 and tf32 to the same check.
REPEATED_CASES = {
    "fp16": ("base", "dropout", "embeds", "sharp", "mixed"),
    "fp32": ("tiny",),
    TF32: ("base", "dropout"),
}


def pytest_generate_tests(metafunc):
    operation = getattr(metafunc.module, "OPERATION", None)
    if operation is None:
        return
    names, on_gpu = metafunc.fixturenames, metafunc.config.getoption("--device") != "cpu"
    if "case" in names:
        axis = "backend" if "backend" in names else "pair"
        backends = _backends_of(operation, on_gpu)
        runs = _pairs(operation, on_gpu) if axis == "pair" else [(backend,) for backend in backends]
        rows = [
            pytest.param(
                case, dtype, run if axis == "pair" else run[0],
                id="-".join([str(case), dtype, *run]),
                marks=pytest.mark.repeated if not on_gpu and _repeated(case, dtype, run) else [],
            )
            for case, dtype, run in _parity_rows(operation, runs, on_gpu)
        ]  # fmt: skip
        metafunc.parametrize(("case", "dtype", axis), rows)
        return
    values = {
        "backend": {
            backend: backend for backend in _backends_of(operation, on_gpu) if backend != "eager"
        },
        "mutation": dict(harness.mutations(operation)),
        "direction": {"forward": "forward", "backward": "backward"},
    }
    for name, choices in values.items():
        if name in names:
            metafunc.parametrize(name, list(choices.values()), ids=list(choices))


def _backends_of(operation: str, on_gpu: bool) -> list[str]:
    """The backends that the operation has, or where Triton cannot be imported would have."""
    asked = (*GPU_BACKENDS, "eager", "reference") if on_gpu else (*HOST_BACKENDS, *GPU_BACKENDS)
    return [backend for backend in asked if backend != "triton:torch" or operation in WITH_MATMUL]


def _pairs(operation: str, on_gpu: bool) -> list[tuple[str, str]]:
    """(backend of the forward, backend of the backward): every backend with itself and with the reference."""
    pairs = []
    for backend in _backends_of(operation, on_gpu):
        pairs += {(backend, backend): 0, ("reference", backend): 0, (backend, "reference"): 0}
    return list(dict.fromkeys(pairs))


def _parity_rows(operation: str, runs: list[tuple], on_gpu: bool):
    """(case, dtype, backends) of each parity test."""
    for case in harness.cases(operation):
        for dtype in (*DTYPES, TF32):
            for run in runs:
                on_gpu_backend = bool(set(run) & set(GPU_BACKENDS))
                if dtype == TF32 and not on_gpu_backend:
                    continue
                if dtype == "fp32" and "eager" in run:  # the reference itself
                    continue
                if on_gpu_backend and not on_gpu and not _executed(case, dtype, run):
                    continue
                yield case, dtype, run


def _executed(case: harness.Case, dtype: str, run: tuple) -> bool:
    """Whether a backend of a GPU is executed in this test on a machine without one."""
    if run[0] in GPU_BACKENDS and run[-1] == "reference":
        return False  # what it saves is held to the rule by the forward's test
    if len(set(run)) == 2 and dtype != "bf16":
        return False
    names = None if "cuda" in run else EXECUTED_CASES[dtype]
    return names is None or case.name in names


def _repeated(case: harness.Case, dtype: str, run: tuple) -> bool:
    """Whether an executed test runs code on which other tests have the same check."""
    if not set(run) & set(GPU_BACKENDS):
        return False
    if len(set(run)) == 2:  # its own forward's saved values are held to the rule, and feed it too
        return case.name != "odd"
    return "cuda" not in run and case.name in REPEATED_CASES.get(dtype, ())


@pytest.fixture(autouse=True)
def _executed_backend(request):
    """The backend that a test without cases names computes on an emulated device."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    backends = () if "case" in parameters else (parameters.get("backend"),)
    with running(*backends, device=request.config.getoption("--device")):
        yield


@pytest.fixture
def check_forward(request):
    """harness.check_forward, or a skip where the backend refuses."""

    def check(operation, case, dtype, backend):
        with _running(request, operation, case, dtype, backend) as options:
            _skip_where_refused(operation, "forward", case, backend, options)
            harness.check_forward(operation, case, backend=backend, **options)

    return check


@pytest.fixture
def check_backward(request):
    """harness.check_backward for (backend of the forward, backend of the backward), or a skip where one
    refuses.
    """

    def check(operation, case, dtype, pair):
        with _running(request, operation, case, dtype, *pair) as options:
            for direction, backend in zip(("forward", "backward"), pair, strict=True):
                _skip_where_refused(operation, direction, case, backend, options)
            forward, backward = pair
            harness.check_backward(operation, case, backend=backward, forward=forward, **options)

    return check


@contextlib.contextmanager
def _running(request, operation, case, dtype, *backends):
    """Where the backends run; gives the options of testing's checks."""
    device = request.config.getoption("--device")
    options = {"dtype": DTYPES.get(dtype, torch.float32), "device": device, "tf32": dtype == TF32}
    harness.expect(operation, case, options["dtype"], options["tf32"])  # outside the emulation
    with allowing_tf32(dtype == TF32), running(*backends, device=device):
        yield options


@pytest.fixture
def check_mutation():
    """The accuracy check must reject the function: its result or its gradients, in some case at
    fp32.
    """

    def check(operation, function):
        for case in harness.cases(operation):
            for check in (harness.check_function, harness.check_gradients):
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
        for case in harness.cases(operation):
            if case.name not in ("odd", "dropout", "embeds", "no-bias", "mixed"):
                continue
            dtype = torch.bfloat16 if case.mixed else torch.float32
            for save in (True, False):
                args = harness.arguments(operation, direction, case, dtype, save)
                if direction == "forward" and save:
                    args = tuple(_asks_for_gradient(value) for value in args)
                torch.library.opcheck(harness.op(operation, direction), args)

    return check


def _skip_where_refused(operation, direction, case, backend, options):
    reason = harness.refusal(
        operation, direction, case, options["dtype"], backend, options["device"]
    )
    if reason is not None:
        pytest.skip(f"{operation}, {direction}, {backend}: {reason}")


def _asks_for_gradient(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if floating else value
