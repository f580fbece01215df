"""`bertfast verify`, `bertfast tune` and what `bertfast info` says of forms and measurements."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from bertfast import Encoder, dispatch
from bertfast.cli import main
from bertfast.dispatch import measured, table


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command with a cache folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured.forget()

    def call(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    yield call
    measured.forget()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify(run, tiny, dtype):
    result = run("verify", tiny, "--rounds", "1", "--dtype", dtype, "--train")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    for form in ("auto", "cpu", "reference", "transformers"):
        assert lines[form].count(" ms") == 2
    assert {"embeddings", "encoder.layer.0", "encoder.layer.1"} <= lines.keys()
    assert "tokens, torch." + dtype in lines["6"]
    assert "no such form" in lines["triton_matmul"]
    assert (" ms" in lines["torch"]) == (dtype == "bfloat16")
    result = run("verify", tiny, "--rounds", "1", "--dtype", dtype)
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["cpu"].count(" ms") == 1
    assert "gradients" not in lines["form"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_verify_fails_above_tolerance(run, tiny, monkeypatch, direction):
    """One form that is off by a thousandth, in its result or in one gradient."""

    def off(right, *args):
        results = right(*args)
        return (results[0] * 1.001, *results[1:])

    result = _verify_with(off, direction, run, tiny, monkeypatch)
    marked = [line.split()[0] for line in result.stdout.splitlines() if "ABOVE" in line]
    assert marked == ["auto", "cpu"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_verify_shows_forms_that_raise(run, tiny, monkeypatch, direction):
    """As a kernel that this machine cannot compile; the other forms are checked all the same."""

    def broken(right, *args):
        raise RuntimeError("no kernel\nfor this")

    result = _verify_with(broken, direction, run, tiny, monkeypatch)
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["auto"].endswith("RAISED RuntimeError: no kernel")
    assert lines["cpu"].endswith("RAISED RuntimeError: no kernel")
    assert lines["reference"].count(" ms") == 2


def _verify_with(change, direction, run, tiny, monkeypatch):
    """`bertfast verify`, which has to fail, with change(function, its arguments) as linear_gelu in C++."""
    right = dispatch._FORMS["linear_gelu"]["cpu"]
    functions = {"forward": right.forward, "backward": right.backward}
    functions[direction] = functools.partial(change, functions[direction])
    wrong = SimpleNamespace(supports=right.supports, **functions)
    found = {name: dispatch._FORMS["linear_gelu"][name] for name in ("torch", "reference")}
    monkeypatch.setitem(dispatch._FORMS, "linear_gelu", {"cpu": wrong, **found})
    with dispatch.measuring(False):
        result = run("verify", tiny, "--rounds", "1", "--train")
    assert result.exit_code == 1
    assert result.stderr == "bertfast: above tolerance or raised: auto, cpu\n"
    return result


def test_verify_takes_texts_of_a_file(run, tiny, tmp_path):
    (tmp_path / "texts.txt").write_text("one\n\ntwo words\n")
    result = run("verify", tiny, "--texts", "texts.txt", "--rounds", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("3 texts, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("verify nothing", "nothing"),
        ("verify TINY --texts none.txt", "none.txt: cannot be read"),
        ("tune nothing", "nothing"),
        ("tune TINY --tokens many", "--tokens: expected positive integers"),
        ("tune TINY --tokens 0", "--tokens: expected positive integers"),
    ],
)
def test_mistakes(run, tiny, arguments, message):
    result = run(*(tiny if word == "TINY" else word for word in arguments.split()))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_tune_fills_the_table(run, tiny):
    with dispatch.use_backend("reference"):  # as BERTFAST_BACKEND may say; tuning is free of it
        result = run("tune", tiny, "--tokens", "5,40", "--length", "8", "--training")
    assert result.exit_code == 0, result.output
    (path,) = table.folder().glob("*.json")
    assert result.stdout.splitlines()[-1] == f"kept in {path}"
    keys = json.loads(path.read_text())["measured"]
    for operation in ("embedding", "qkv_projection", "attention", "linear_gelu"):
        for direction in ("forward", "backward"):
            for tokens in (8, 64):
                start = f"{operation} {direction} float32 tokens={tokens} "
                assert any(key.startswith(start) for key in keys), start
    dropout = {key.split("dropout=")[1][0] for key in keys if key.startswith("attention")}
    assert dropout == {"0", "1"}
    found = run("info").stdout
    assert f"measured: {len(keys)} kinds of calls, " in found
    assert f"kept in {path}" in found


def test_a_tuned_model_is_not_measured_again(run, tiny, monkeypatch):
    """The keys that tuning fills are those that an encoder meets."""
    assert run("tune", tiny, "--tokens", "16", "--length", "8").exit_code == 0
    measured.forget()
    monkeypatch.setattr(measured, "_measure", lambda *call: pytest.fail("measured again"))
    encoder = Encoder.from_pretrained(tiny)
    with dispatch.measuring(True), dispatch.record() as log:
        encoder.encode(["a a a a a a"] * 2)
    assert len(log) == 11
    reasons = [reason for choice in log for reason in choice.reasons.values()]
    assert all("measured" in reason for reason in reasons), reasons
    assert len(reasons) >= 11


def test_info_shows_what_was_struck_off(run):
    found = measured.table_of(torch.device("cpu"))
    found.add("some call", table.Decision("cpu", {"cpu": 1.0}, {"torch": "raised Oops: a reason"}))
    measured.forget()
    text = run("info").stdout
    assert "measured: 1 kinds of calls, cpu 1\n" in text
    assert "struck off: torch, some call: raised Oops: a reason\n" in text
