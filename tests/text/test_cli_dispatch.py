"""`bertfast verify`, `bertfast tune` and what `bertfast info` says of tables."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from bertfast import dispatch
from bertfast.cli import info, main
from bertfast.dispatch import decisions
from bertfast.dispatch.decisions import Decision
from bertfast.tuning import measuring


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command with a cache folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    decisions.forget()

    def call(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    yield call
    decisions.forget()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify(run, tiny, dtype):
    result = run("verify", tiny, "--rounds", "1", "--dtype", dtype, "--train")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    for backend in ("auto", "cpu", "reference", "transformers"):
        assert lines[backend].count(" ms") == 2
    assert {"embeddings", "encoder.layer.0", "encoder.layer.1"} <= lines.keys()
    assert "tokens, torch." + dtype in lines["6"]
    assert "triton finds no device" in lines["triton:torch"] or "no device" not in lines["triton"]
    assert (" ms" in lines["eager"]) == (dtype == "bfloat16")
    result = run("verify", tiny, "--rounds", "1", "--dtype", dtype)
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["cpu"].count(" ms") == 1
    assert "gradients" not in lines["backend"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_verify_fails_above_tolerance(run, tiny, monkeypatch, direction):
    """One backend that is off by a thousandth, in its result or in one gradient."""

    def off(right, *args):
        results = right(*args)
        return (results[0] * 1.001, *results[1:])

    result = _verify_with(off, direction, run, tiny, monkeypatch)
    marked = [line.split()[0] for line in result.stdout.splitlines() if "ABOVE" in line]
    assert marked == ["auto", "cpu"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_verify_shows_backends_that_raise(run, tiny, monkeypatch, direction):
    """As a kernel that this machine cannot compile; the other backends are checked all the same."""

    def broken(right, *args):
        raise RuntimeError("no kernel\nfor this")

    result = _verify_with(broken, direction, run, tiny, monkeypatch)
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["auto"].endswith("RAISED RuntimeError: no kernel")
    assert lines["cpu"].endswith("RAISED RuntimeError: no kernel")
    assert lines["reference"].count(" ms") == 2


def _verify_with(change, direction, run, tiny, monkeypatch):
    """`bertfast verify`, which has to fail, with change(function, its arguments) as linear_gelu in C++."""
    right = dispatch.backends_of("linear_gelu")["cpu"]
    functions = {"forward": right.forward, "backward": right.backward}
    functions[direction] = functools.partial(change, functions[direction])
    wrong = SimpleNamespace(supports=right.supports, **functions)
    found = {name: dispatch.backends_of("linear_gelu")[name] for name in ("eager", "reference")}
    monkeypatch.setitem(dispatch._BACKENDS, "linear_gelu", {"cpu": wrong, **found})
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


def test_tune_needs_a_gpu(run, tiny):
    for arguments in ((), ("--device", "cpu")):
        result = run("tune", tiny, *arguments)
        assert result.exit_code == 2
        assert "--device: expected a CUDA GPU" in result.stderr
        assert "On a CPU the backend cpu serves every size" in result.stderr


def test_tune_measures_every_operation(run, tiny, monkeypatch):
    """Here on the CPU with a clock that is made up; the table is kept where `info` says."""
    monkeypatch.setattr("bertfast.cli.tune.place_of", lambda device: torch.device("cpu"))
    monkeypatch.setattr(measuring, "CANDIDATES", ("cpu", "eager"))
    monkeypatch.setattr(measuring, "stopwatch", lambda run, device: 1.0)
    result = run("tune", tiny, "--tokens", "5,40", "--length", "8", "--training")
    assert result.exit_code == 0, result.output
    path = decisions.path_of(torch.device("cpu"))
    assert result.stdout.splitlines()[-1] == f"kept in {path}"
    keys = decisions.table(torch.device("cpu"))
    for operation in dispatch.operations():
        for direction in ("forward", "backward"):
            for tokens in (8, 64):
                start = f"{operation} {direction} float32 tokens={tokens} "
                assert any(key.startswith(start) for key in keys), start


def test_info_shows_what_was_rejected(run, monkeypatch):
    gpu = torch.device("cuda", 0)
    decision = Decision("cuda", {"cuda": 1.0}, {"triton": "raised Oops: a reason"})
    monkeypatch.setattr(decisions, "table", lambda device: {"some call": decision})
    text = "\n".join(info._measured(gpu))
    assert text.startswith("tuning table: 1 kinds of calls, cuda 1; ")
    assert "rejected: triton, some call: raised Oops: a reason" in text
