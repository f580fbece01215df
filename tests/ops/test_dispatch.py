"""The choice of a form: order, names, the environment variable, records, threads, and an absent
extension.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from bertfast import dispatch, ops
from bertfast.errors import ArgumentError, UnsupportedError


def _form(reason=None):
    return SimpleNamespace(
        supports=lambda direction, *args: reason, forward=lambda x, w, b, save: (x + 1, None)
    )


@pytest.fixture
def forms(monkeypatch):
    """linear_gelu with a form cpu that refuses."""
    table = {"cpu": _form("too slow here"), "reference": _form()}
    monkeypatch.setitem(dispatch._FORMS, "linear_gelu", table)
    return table


ARGS = (torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(3))


def test_every_operation_is_registered():
    assert sorted(dispatch.operations()) == sorted(ops.__all__)
    for name in ops.__all__:
        assert list(dispatch._FORMS[name]) == list(dispatch.ORDER)


def test_automatic_choice_falls_through_and_is_recorded(forms):
    with dispatch.record() as log, dispatch.record() as inner, torch.no_grad():
        assert (ops.linear_gelu(*ARGS) == 1).all()
    assert log == inner == [("linear_gelu", "forward", "reference", {"cpu": "too slow here"})]
    assert dispatch.reasons("linear_gelu", "forward", ARGS) == {
        "cpu": "too slow here",
        "reference": None,
    }


def test_first_form_that_supports_runs(forms):
    forms["cpu"] = _form()
    assert dispatch.choose("linear_gelu", "forward", ARGS) is forms["cpu"]


def test_named_form_never_falls_through(forms):
    with dispatch.use_backend("cpu"), dispatch.record() as log:
        with pytest.raises(
            UnsupportedError, match=r"linear_gelu, forward: cpu: too slow here\. Take use_backend"
        ):
            ops.linear_gelu(*ARGS)
        with dispatch.use_backend("reference"):
            assert dispatch.choose("linear_gelu", "forward", ARGS) is forms["reference"]
        assert dispatch.backend() == "cpu"
    assert [choice.form for choice in log] == [None, "reference"]
    assert dispatch.backend() == "auto"


def test_all_forms_refuse(forms):
    forms["reference"] = _form("no")
    with pytest.raises(UnsupportedError, match="cpu: too slow here; reference: no"):
        dispatch.choose("linear_gelu", "forward", ARGS)


def test_bad_name():
    with pytest.raises(
        ArgumentError, match="name: expected one of auto, cpu, reference, got 'cuda'"
    ):
        dispatch.use_backend("cuda").__enter__()


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
        ArgumentError, match="BERTFAST_BACKEND: expected one of auto, cpu, reference, got 'gpu'"
    ):
        dispatch.choose("linear_gelu", "forward", ARGS)
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
print(log[0].form, log[0].reasons["cpu"])
"""
    environment = {**os.environ, "BERTFAST_BACKEND": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference native extension not built")


def test_absent_module_refuses_with_its_error(monkeypatch):
    monkeypatch.setitem(dispatch._FORMS, "linear_gelu", {})
    monkeypatch.setitem(sys.modules, "bertfast.ops.linear_gelu.native", None)
    dispatch.register("linear_gelu", "bertfast.ops.linear_gelu")
    assert dispatch.reasons("linear_gelu", "forward", ())["cpu"].startswith(
        "native extension not built: "
    )
