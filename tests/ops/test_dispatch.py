"""The choice of a backend: order, names, the environment variable, records, threads, what is absent or broken."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from bertfast import dispatch, ops
from bertfast.errors import ArgumentError, UnsupportedError
from bertfast.ops._contract import CONTRACTS
from bertfast.ops._loading import Backends


def _backend(reason=None):
    return SimpleNamespace(
        supports=lambda call: reason, forward=lambda x, w, b, save: (x + 1, None)
    )


@pytest.fixture
def backends(monkeypatch):
    """linear_gelu with a backend cpu that refuses."""
    table = {"cpu": _backend("too slow here"), "reference": _backend()}
    monkeypatch.setitem(dispatch._BACKENDS, "linear_gelu", table)
    return table


ARGS = (torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(3))
CALL = CONTRACTS["linear_gelu"].forward(*ARGS, False)


def test_every_operation_is_registered():
    assert sorted(dispatch.operations()) == sorted(ops.__all__)
    for name in ops.__all__:
        assert list(dispatch._BACKENDS[name]) == list(dispatch.NAMES)


def test_automatic_choice_falls_through_and_is_recorded(backends):
    with dispatch.record() as log, dispatch.record() as inner, torch.no_grad():
        assert (ops.linear_gelu(*ARGS) == 1).all()
    assert log == inner == [("linear_gelu", "forward", "reference", {"cpu": "too slow here"})]
    assert dispatch.reasons(CALL) == {
        "cpu": "too slow here",
        "reference": None,
    }


def test_first_backend_that_supports_runs(backends):
    backends["cpu"] = _backend()
    assert dispatch.choose(CALL) == ("cpu", backends["cpu"])


def test_named_backend_never_falls_through(backends):
    with dispatch.use_backend("cpu"), dispatch.record() as log:
        with pytest.raises(
            UnsupportedError, match=r"linear_gelu, forward: cpu: too slow here\. Take use_backend"
        ):
            ops.linear_gelu(*ARGS)
        with dispatch.use_backend("reference"):
            assert dispatch.choose(CALL)[0] == "reference"
        assert dispatch.backend() == "cpu"
    assert [choice.backend for choice in log] == [None, "reference"]
    assert dispatch.backend() == "auto"


def test_all_backends_refuse(backends):
    backends["reference"] = _backend("no")
    with pytest.raises(UnsupportedError, match="cpu: too slow here; reference: no"):
        dispatch.choose(CALL)


def test_bad_name():
    with pytest.raises(
        ArgumentError, match="name: expected one of auto, cpu, .*, reference, got 'gpu'"
    ):
        dispatch.use_backend("gpu")


def test_environment_variable(monkeypatch):
    for value, expected in (("reference", "reference"), ("", "auto"), ("auto", "auto")):
        monkeypatch.setenv("BERTFAST_BACKEND", value)
        dispatch._environment.cache_clear()
        assert dispatch.backend() == expected
    with dispatch.use_backend("cpu"):
        assert dispatch.backend() == "cpu"
    monkeypatch.setenv("BERTFAST_BACKEND", "gpu")
    dispatch._environment.cache_clear()
    with pytest.raises(
        ArgumentError, match="BERTFAST_BACKEND: expected one of auto, cpu, .*, got 'gpu'"
    ):
        dispatch.choose(CALL)
    monkeypatch.undo()
    dispatch._environment.cache_clear()


def test_choice_belongs_to_the_thread():
    seen = []
    with dispatch.use_backend("reference"), dispatch.record() as log:
        thread = threading.Thread(target=lambda: seen.append(dispatch.backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]
    assert log == []


def _backward_in_a_thread(out, around=contextlib.nullcontext):
    """As autograd does on a GPU: in a thread that has none of the forward's context."""

    def run():
        with around():
            out.sum().backward()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_backward_runs_in_the_backend_of_the_forward():
    x = torch.ones(2, 3, requires_grad=True)
    with dispatch.record() as log:
        with dispatch.use_backend("reference"):
            out = ops.linear_gelu(x, *ARGS[1:])
        _backward_in_a_thread(out)
    assert [(c.direction, c.backend) for c in log] == [
        ("forward", "reference"),
        ("backward", "reference"),
    ]


def test_backward_obeys_a_choice_of_its_own():
    x = torch.ones(2, 3, requires_grad=True)
    with dispatch.use_backend("reference"):
        out = ops.linear_gelu(x, *ARGS[1:])
    seen = []

    @contextlib.contextmanager
    def around():
        with dispatch.use_backend("cpu"), dispatch.record() as log:
            yield
        seen.extend(log)

    _backward_in_a_thread(out, around)
    assert [(c.direction, c.backend) for c in seen] == [("backward", "cpu")]


def test_a_record_ends_with_its_block():
    x = torch.ones(2, 3, requires_grad=True)
    with dispatch.record() as log:
        out = ops.linear_gelu(x, *ARGS[1:])
    _backward_in_a_thread(out)
    assert [choice.direction for choice in log] == ["forward"]


def _run(program, **environment):
    environment = {**os.environ, "BERTFAST_BACKEND": "auto", **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def test_without_the_extension():
    """The package works on the reference alone, and says why."""
    program = """
import sys
sys.modules["bertfast._cpu"] = None
import torch
from bertfast import dispatch, ops
args = torch.ones(2, 3), torch.ones(3, 3), torch.ones(3)
with dispatch.record() as log:
    ops.linear_gelu(*args)
print(log[0].backend, log[0].reasons["cpu"])
"""
    assert _run(program).stdout.startswith("reference native extension not built")


def test_absent_module_refuses_with_its_error(monkeypatch):
    monkeypatch.setitem(dispatch._BACKENDS, "linear_gelu", {})
    monkeypatch.setitem(sys.modules, "bertfast.ops.linear_gelu.cpu", None)
    dispatch.register("linear_gelu", Backends("linear_gelu"))
    found = dispatch.reasons(CALL)
    assert found["cpu"].startswith("native extension not built: ")


def test_backends_are_imported_when_they_are_asked_for():
    """What runs on the CPU imports neither Triton nor the backends that it does not take."""
    program = """
import sys, torch, bertfast
from bertfast import ops
loaded = lambda: {n for n in sys.modules if n == "triton" or n.startswith("bertfast.ops.linear_gelu.")}
assert loaded() == set(), loaded()
bertfast.ops.linear_gelu(torch.ones(2, 3), torch.ones(3, 3), torch.ones(3))
assert loaded() == {"bertfast.ops.linear_gelu.cpu"}, loaded()
"""
    _run(program)


BROKEN = {
    "missing": "raise ModuleNotFoundError('No module named triton')",
    "broken": "raise OSError('libtriton.so: undefined symbol')",
    "gutted": "__version__ = '3.9.0'",
    "old": "__version__ = '3.2.0'",
}
TELL = """
import logging, sys, torch, types
logging.basicConfig(stream=sys.stdout, format="LOGGED %(message)s")
from bertfast import UnsupportedError, dispatch, ops
from bertfast.ops._contract import CONTRACTS
args = torch.ones(2, 3), torch.ones(3, 3), torch.ones(3)
with dispatch.record() as log:
    ops.linear_gelu(*args)
print("RAN", log[0].backend)
try:
    with dispatch.use_backend("triton"):
        ops.linear_gelu(*args)
except UnsupportedError as error:
    print("NAMED", error)
for operation in ("linear_gelu", "linear_gelu", "gelu_layernorm"):
    call = CONTRACTS[operation].forward
    call = call(*args, *(None,) * (len(call._fields) - 3))
    lead = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    call = type("OnGpu", (call.__class__,), {"lead": lead})(*call)
    print("GPU", dispatch.backends_of(operation)["triton"].supports(call))
"""


@pytest.mark.parametrize("kind", BROKEN)
def test_triton_missing_or_broken(kind, tmp_path):
    """bertfast runs on; the reason is kept, and told once where a GPU would have been served."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(BROKEN[kind])
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path)}
    lines = _run(TELL, **environment).stdout.splitlines()
    why = "triton cannot be imported: "
    why += {
        "missing": "No module named triton",
        "broken": "libtriton.so: undefined symbol",
        "gutted": "No module named 'triton.runtime'",
        "old": "it is 3.2.0, and 3.3 (torch 2.7) or newer is needed",
    }[kind]
    assert lines[0].startswith("RAN ")
    assert lines[1].startswith(f"NAMED linear_gelu, forward: triton: {why}")
    told = [line for line in lines if line.startswith("LOGGED")]
    assert len(told) == 1, told
    assert why in told[0]
    reasons = [line for line in lines if line.startswith("GPU")]
    assert len(reasons) == 3
    assert all(line.startswith(f"GPU {why}") for line in reasons)


@pytest.mark.parametrize("compiler", ["/none/such-compiler", None])
def test_triton_without_a_compiler(compiler, tmp_path):
    """CC names no program, or there is none on the path at all."""
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {"XDG_CACHE_HOME": str(tmp_path), "TRITON_INTERPRET": ""}
    if compiler is None:
        environment |= {"PATH": str(tmp_path)}
        program = "import os; os.environ.pop('CC', None)" + TELL
    else:
        environment |= {"CC": compiler}
        program = TELL
    lines = _run(program, **environment).stdout.splitlines()
    assert lines[0].startswith("RAN ")
    reasons = [line for line in lines if line.startswith("GPU")]
    assert len(reasons) == 3
    assert all(line.startswith("GPU triton needs a C compiler") for line in reasons)
    (told,) = [line for line in lines if line.startswith("LOGGED")]
    assert (compiler or "there is no gcc and no clang") in told
