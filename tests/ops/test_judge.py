"""The judge of the measured choice: right forms pass on part of any input, every slip of a kernel is seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import harness
from bertfast import dispatch
from bertfast.accuracy import judge

CPU = torch.device("cpu")


def _judged(operation, direction, args, form):
    """The struck-off reason of one form, run besides the reference; None if it is right."""
    found = dispatch._FORMS[operation]
    question = judge.Question(operation, direction, args, CPU)
    ready = {"form": form, "reference": found["reference"]}
    decision = judge.decide(question, ready, found["reference"], found["torch"])
    assert "reference" not in decision.struck_off
    return decision.struck_off.get("form")


@pytest.fixture
def _quick(monkeypatch):
    """Judge few rows, so that most cases are cut, and time nothing."""
    monkeypatch.setitem(judge.ROWS, "cpu", 16)
    monkeypatch.setattr(judge, "stopwatch", lambda run, device, repeats: 1.0)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("operation", harness.OPERATIONS)
def test_right_forms_are_not_struck_off(operation, direction, dtype):
    """Every shared case, of which some rows are judged, whichever rows."""
    for case in harness.cases(operation):
        args = harness.arguments(operation, direction, case, dtype)
        for name in ("cpu", "torch"):
            form = dispatch._FORMS[operation][name]
            if form.supports(direction, *args) is None:
                reason = _judged(operation, direction, args, form)
                assert reason is None, f"{operation} {case} {dtype} {name}: {reason}"


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("operation", harness.OPERATIONS)
def test_wrong_variants_are_struck_off(operation):
    """Each mutation of the formula, in some case (but those of the gradient alone)."""
    given = dispatch.names(operation, "forward")
    for name, mutated in harness.mutations(operation):
        if name.startswith("gradient"):
            continue
        reasons = []
        for case in harness.cases(operation):
            args = harness.arguments(operation, "forward", case, torch.float32, save=False)

            def forward(*args, mutated=mutated):
                named = dict(zip(given, args, strict=True))
                named.pop("save", None)
                right = dispatch._FORMS[operation]["reference"].forward(*args)
                out = mutated(**named)
                return (out, *right[1:]) if isinstance(right, tuple) else out

            reasons.append(_judged(operation, "forward", args, SimpleNamespace(forward=forward)))
            if reasons[-1]:
                break
        assert reasons[-1], f"{operation}: {name} passes in every case"


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("operation", harness.OPERATIONS)
def test_each_gradient_is_judged(operation):
    """A gradient that is off by a hundredth, or is nan in one place, strikes off."""
    case = harness.cases(operation)[1]
    args = harness.arguments(operation, "backward", case, torch.float32)
    backward = dispatch._FORMS[operation]["reference"].backward
    right = backward(*args)
    count = len(right) if isinstance(right, tuple) else 1
    for index in range(count):
        for spoil in (lambda t: t.mul_(1.01), lambda t: t.view(-1)[0].fill_(torch.nan)):

            def wrong(*args, index=index, spoil=spoil):
                found = backward(*args)
                results = list(found) if isinstance(found, tuple) else [found]
                if results[index] is not None:
                    spoil(results[index])
                return tuple(results)

            if isinstance(right, tuple) and right[index] is None:
                continue
            reason = _judged(operation, "backward", args, SimpleNamespace(backward=wrong))
            assert reason is not None, f"{operation}: gradient {index}"
            assert reason.startswith("differs from torch: ")
