"""The accuracy check itself (bertfast.tuning.accuracy): what it lets pass and what it does not."""

from __future__ import annotations

import pytest
import torch

import harness

EPS = torch.finfo(torch.float32).eps


def _expected(rows: int, used: int, torch_error: float = 0.0):
    """A [rows,8] table of ones of which `used` rows have terms, and torch's values of it."""
    size = torch.zeros(rows, 8, dtype=torch.float64)
    size[:used] = 1.0
    return harness.Expected(size, (size * (1 + torch_error)).float(), size)


def _off(expected, error: float):
    return expected.exact + error * expected.size


@pytest.mark.parametrize("rows", [4, 4000])
def test_rows_without_terms_do_not_count(rows):
    """Neither in the errors nor in n: the rule says the same of a table that is mostly unused."""
    expected = _expected(rows, used=4)
    harness.compare("table", _off(expected, EPS), expected)
    with pytest.raises(AssertionError, match="RMS"):
        harness.compare("table", _off(expected, 3 * EPS), expected)


def test_errors_are_held_to_those_of_torch():
    expected = _expected(400, used=400, torch_error=64 * EPS)
    harness.compare("result", _off(expected, 80 * EPS), expected)
    with pytest.raises(AssertionError, match="RMS"):
        harness.compare("result", _off(expected, 110 * EPS), expected)


def test_one_element_is_held_to_its_row():
    expected = _expected(400, used=400)
    got = expected.exact.clone()
    got[7, 3] += 9 * EPS
    with pytest.raises(AssertionError, match=r"\[7, 3\]"):
        harness.compare("result", got, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_no_result(value):
    expected = _expected(400, used=4, torch_error=64 * EPS)
    got = expected.exact.clone()
    got[300, 0] = value
    with pytest.raises(AssertionError, match=r"\[300, 0\]"):
        harness.compare("result", got, expected)


def run_in(dtype):
    """Results of a run, one of them a single number."""
    x = torch.linspace(-3, 3, 400, dtype=torch.float64).to(dtype)
    return {"rows": [x.sin(), x.exp()], "loss": x.square().mean()}


def test_near_takes_a_run_as_one():
    """A number that eager torch has right to the bit does not ask the same of others."""
    exact, eager = run_in(torch.float64), run_in(torch.float32)
    eager["loss"] = exact["loss"].float()
    harness.near("run", eager, exact, eager)
    step = 4 * torch.finfo(torch.float32).eps
    harness.near("run", {**eager, "loss": eager["loss"] * (1 + step)}, exact, eager)


def test_near_takes_a_tensor_as_one_sample():
    """All that a model computes of one rounding has its error."""
    exact = {f"w{i}": torch.ones(50, dtype=torch.float64) for i in range(16)}
    eager = {name: t.float() for name, t in exact.items()}
    off = torch.full((50,), 1 + 7 * EPS)
    harness.near("run", eager | {"w3": off}, exact, eager)
    with pytest.raises(AssertionError, match="RMS error"):
        harness.near("run", eager | {"w3": off, "w4": off}, exact, eager)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run | {"loss": run["loss"] * (1 + 1e-4)}, "largest error in loss"),
        (lambda run: run | {"rows": [run["rows"][0], run["rows"][1] * torch.nan]}, r"rows\[1\]"),
        (lambda run: {"loss": run["loss"]}, "expected"),
        (lambda run: run | {"loss": run["loss"][None]}, r"loss: shape \(1,\), expected \(\)"),
        (lambda run: run | {"loss": run["loss"].half()}, "loss: torch.float16, expected"),
    ],
)
def test_near_rejects(change, message):
    exact, eager = run_in(torch.float64), run_in(torch.float32)
    with pytest.raises(AssertionError, match=message):
        harness.near("run", change(eager), exact, eager)


def test_near_holds_float64_to_its_own_roundings():
    exact = run_in(torch.float64)
    harness.near("run", exact, exact, run_in(torch.float32))
    with pytest.raises(AssertionError, match="RMS error"):
        harness.near(
            "run", {**exact, "loss": exact["loss"] * (1 + 1e-9)}, exact, run_in(torch.float32)
        )


def test_cases_follow_the_seed(monkeypatch):
    monkeypatch.setenv(harness.seeds.VARIABLE, "7")
    assert harness.Case("any", (1,)).seed == 7
    assert harness.seeds.token_ids(3).equal(harness.seeds.token_ids(3))
