"""The measured choice, with forms made for the purpose and a clock that says what it is told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bertfast import dispatch, ops
from bertfast.accuracy import judge
from bertfast.dispatch import forms, measured, table

ARGS = (torch.randn(5, 3), torch.randn(4, 3), torch.randn(4))


class Clock:
    """Seconds a form takes, by its forward; counts what it was asked."""

    def __init__(self):
        self.seconds: dict = {}
        self.asked: list[str] = []

    def __call__(self, run, device_type, repeats):
        run()
        name = run.__closure__[1].cell_contents.form  # `judge._call` holds (args, function)
        self.asked.append(name)
        return self.seconds[name]


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """A machine that has measured nothing yet, with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured.forget()
    with dispatch.measuring(True):
        yield
    measured.forget()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(judge, "stopwatch", clock)
    return clock


@pytest.fixture
def arena(monkeypatch, clock):
    """linear_gelu with forms that the test gives: name -> (seconds, what it does to the right result)."""
    real = {name: dispatch._FORMS["linear_gelu"][name] for name in ("reference", "torch")}

    def fill(**contenders):
        found = {}
        for name, (seconds, change) in contenders.items():
            clock.seconds[name] = seconds
            found[name] = _form(name, real["reference"], change)
        monkeypatch.setitem(dispatch._FORMS, "linear_gelu", {**real, **found})
        return found

    return fill


def _form(name, reference, change):
    def forward(*args):
        return change(reference.forward(*args))

    def backward(*args):
        return change(reference.backward(*args))

    forward.form = backward.form = name
    return SimpleNamespace(
        forward=forward, backward=backward, supports=lambda direction, *args: None
    )


def right(results):
    return results


def wrong(results):
    return (results[0] * 1.01, *results[1:])


def raising(results):
    raise ValueError("no such\nkernel")


def hungry(results):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] not enough memory: you tried to allocate")


def choose(args=ARGS, direction="forward"):
    """(the form's name, the reasons of the others) of linear_gelu."""
    with dispatch.record() as log, torch.no_grad():
        dispatch.choose("linear_gelu", direction, (*args, False))
    return log[-1].form, log[-1].reasons


def files():
    return sorted(table.folder().glob("*.json"))


def lines():
    (path,) = files()
    return json.loads(path.read_text())["measured"]


def test_the_fastest_runs_and_is_remembered(arena, clock):
    arena(cpu=(2.0, right), reference=(1.0, right))
    assert choose() == ("reference", {"cpu": "measured 2000000 us, reference 1000000 us"})
    asked = len(clock.asked)
    assert choose()[0] == "reference"
    assert len(clock.asked) == asked
    ((key, line),) = lines().items()
    assert key.startswith("linear_gelu forward float32 tokens=8 longest=0 3 4x3 dropout=0")
    assert line["microseconds"] == {"cpu": 2e6, "reference": 1e6}
    measured.forget()  # as another process, which reads the file
    assert choose()[0] == "reference"
    assert len(clock.asked) == asked


def test_nearly_as_fast_stays(arena):
    """A challenger within the noise does not displace the first of the order."""
    arena(cpu=(1.1, right), reference=(1.0, right))
    assert choose()[0] == "cpu"


@pytest.mark.parametrize(
    ("change", "reason"),
    [(wrong, "differs from torch: out: error"), (raising, "raised ValueError: no such kernel")],
)
def test_struck_off(arena, clock, change, reason):
    arena(cpu=(1.0, change), reference=(2.0, right))
    form, reasons = choose()
    assert form == "reference"
    assert reasons["cpu"].startswith(f"struck off: {reason}")
    assert "cpu" not in clock.asked
    ((_, line),) = lines().items()
    assert line["struck_off"]["cpu"].startswith(reason)
    with dispatch.fixed_order():  # known to be wrong: not there either
        assert choose() == ("reference", reasons)
    with dispatch.use_backend("cpu"):  # asked for by name
        assert choose()[0] == "cpu"
    with dispatch.measuring(False):
        assert choose()[0] == "cpu"


def test_out_of_memory_strikes_off_for_this_process(arena):
    arena(cpu=(1.0, hungry), reference=(2.0, right))
    form, reasons = choose()
    assert form == "reference"
    assert reasons["cpu"].startswith("struck off: out of memory: ")
    assert choose()[0] == "reference"
    assert files() == []


def test_failing_only_when_timed(arena, clock):
    """As memory may run out in the middle of it."""
    arena(cpu=(1.0, right), reference=(2.0, right))
    del clock.seconds["cpu"]
    form, reasons = choose()
    assert form == "reference"
    assert reasons["cpu"] == "struck off: raised KeyError: 'cpu'"


def test_a_hopeless_one_is_timed_once(arena, clock):
    arena(cpu=(0.01, right), reference=(9.0, right))
    assert choose()[0] == "cpu"
    assert clock.asked.count("reference") == 1
    assert clock.asked.count("cpu") > 2


def test_all_wrong_leaves_the_fixed_order(arena):
    arena(cpu=(1.0, raising), reference=(1.0, raising))
    assert choose() == ("cpu", {})  # the truth itself could not be had: nothing is known


def test_a_form_that_refuses_is_not_asked(arena, clock):
    found = arena(cpu=(1.0, right), reference=(2.0, right))
    found["cpu"].supports = lambda direction, *args: "not here"
    assert choose() == ("reference", {"cpu": "not here"})
    assert set(clock.asked) == {"reference"}


def test_the_winner_may_refuse_the_next_call(arena):
    found = arena(cpu=(1.0, right), reference=(2.0, right))
    assert choose()[0] == "cpu"
    found["cpu"].supports = lambda direction, *args: "strides"
    assert choose() == ("reference", {"cpu": "strides"})


def _deterministic():
    @contextlib.contextmanager
    def on():
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)

    return on()


FIXED = {
    "deterministic mode": lambda patch: _deterministic(),
    "fixed_order": lambda patch: dispatch.fixed_order(),
    "switched off": lambda patch: dispatch.measuring(False),
    "compile": lambda patch: patch.setattr(torch.compiler, "is_compiling", lambda: True),
}


@pytest.mark.parametrize("mode", FIXED)
@pytest.mark.parametrize("known", [False, True])
def test_modes_that_keep_the_fixed_order(arena, clock, monkeypatch, mode, known):
    arena(cpu=(2.0, right), reference=(1.0, right))
    if known:
        assert choose()[0] == "reference"
    clock.asked.clear()
    with FIXED[mode](monkeypatch) or contextlib.nullcontext():
        assert choose() == ("cpu", {})
    assert clock.asked == []


@pytest.mark.parametrize("known", [False, True])
def test_capture_keeps_the_fixed_order(arena, clock, monkeypatch, known):
    arena(triton=(2.0, right), torch=(1.0, right))
    monkeypatch.setattr(dispatch, "device_type", lambda *call: "cuda")
    monkeypatch.setattr(forms, "candidates", lambda device: ("triton", "torch"))
    monkeypatch.setattr(forms, "triton_cannot_run", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    if known:
        assert choose()[0] == "torch"
    clock.asked.clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == ("triton", {})
    assert clock.asked == []


def test_another_rank_measures(arena, clock, monkeypatch):
    """A rank that is not 0 keeps to the fixed order until rank 0's file holds its key."""
    arena(cpu=(2.0, right), reference=(1.0, right))
    rank = [1]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank[0])
    monkeypatch.setattr(measured, "_REREAD_S", 0.0)
    assert choose() == ("cpu", {})
    assert clock.asked == []
    rank[0] = 0
    assert choose()[0] == "reference"
    measured._DECIDED.clear()  # rank 1 again
    rank[0], asked = 1, len(clock.asked)
    assert choose()[0] == "reference"
    assert len(clock.asked) == asked


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(tuple(t.double() for t in ARGS), id="float64"),
        pytest.param((ARGS[0][:0], *ARGS[1:]), id="no tokens"),
        pytest.param((ARGS[0] * torch.inf, *ARGS[1:]), id="not finite"),
    ],
)
def test_calls_that_cannot_be_measured(arena, clock, args):
    arena(cpu=(2.0, right), reference=(1.0, right))
    for _ in range(2):
        assert choose(args) == ("cpu", {})
    assert clock.asked == []
    assert files() == []


def test_each_size_of_input_is_measured_for_itself(arena, clock):
    arena(cpu=(2.0, right), reference=(1.0, right))
    choose()
    x, weight, bias = ARGS
    asked = len(clock.asked)
    choose((torch.randn(8, 3), weight, bias))  # 5 to 8 tokens are one size
    assert len(clock.asked) == asked
    for args in (
        (torch.randn(9, 3), weight, bias),
        (x, torch.randn(6, 3), torch.randn(6)),
        tuple(t.bfloat16() for t in ARGS),
    ):
        clock.asked.clear()
        clock.seconds["torch"] = 1.0
        choose(args)
        assert clock.asked
    assert len(lines()) == 3 + 1


def test_nothing_is_changed_or_drawn():
    """Measuring leaves inputs, autograd and torch's random state alone, under autocast too."""
    leaves = [t.clone().requires_grad_() for t in ARGS]
    before, versions = [t.detach().clone() for t in leaves], [t._version for t in leaves]
    state = torch.random.get_rng_state()
    out = ops.linear_gelu(*leaves)
    out.sum().backward()
    assert len(lines()) == 2  # forward and backward, both by the real forms
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [t._version for t in leaves] == versions
    assert all(map(torch.equal, leaves, before))
    assert out.grad_fn is not None
    with torch.autocast("cpu"), torch.inference_mode():
        assert ops.linear_gelu(*ARGS).dtype is torch.bfloat16
    assert len(lines()) == 3


def test_while_another_thread_measures_the_fixed_order_holds(arena, clock):
    arena(cpu=(2.0, right), reference=(1.0, right))
    with measured._LOCK:
        assert choose() == ("cpu", {})
    assert clock.asked == []
    assert choose()[0] == "reference"


def test_a_process_measures_for_a_limited_time(arena, clock, monkeypatch):
    arena(cpu=(2.0, right), reference=(1.0, right))
    monkeypatch.setattr(measured, "_spent_s", measured.LIMIT_S + 1)
    assert choose() == ("cpu", {})
    with dispatch.tuning() as decisions:
        assert choose()[0] == "reference"
    assert [decision.form for decision in decisions.values()] == ["reference"]


def test_tuning_measures_again(arena, clock):
    arena(cpu=(2.0, right), reference=(1.0, right))
    assert choose()[0] == "reference"
    clock.seconds["cpu"] = 0.1
    assert choose()[0] == "reference"
    with dispatch.tuning():
        assert choose()[0] == choose()[0] == "cpu"
    assert choose()[0] == "cpu"
    measured.forget()
    assert choose()[0] == "cpu"


GARBAGE = {
    "empty": "",
    "torn": '{"format": 1, "identity": {',
    "bytes": "\x00\x01",
    "list": "[1, 2]",
    "other format": '{"format": 99, "measured": {}}',
    "no identity": '{"format": 1, "measured": {"KEY": {"form": "cpu"}}}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("content", list(GARBAGE.values()), ids=list(GARBAGE))
def test_a_corrupt_file_is_written_anew(arena, clock, content):
    arena(cpu=(2.0, right), reference=(1.0, right))
    choose()
    (path,) = files()
    good = path.read_text()
    path.write_text(content)
    measured.forget()
    clock.asked.clear()
    assert choose()[0] == "reference"
    assert clock.asked
    assert path.read_text() == good


@pytest.mark.parametrize(
    "line",
    [
        None,
        "cpu",
        {"form": "abacus", "microseconds": {}, "struck_off": {}},
        {"form": "cpu", "microseconds": {"cpu": "fast"}, "struck_off": {}},
        {"form": "cpu", "microseconds": {}, "struck_off": {"cpu": "wrong"}},
        {"form": ["cpu"], "microseconds": {}, "struck_off": {}},
    ],
)
def test_a_line_that_makes_no_sense_is_measured_again(arena, clock, line):
    arena(cpu=(2.0, right), reference=(1.0, right))
    choose()
    (path,) = files()
    content = json.loads(path.read_text())
    content["measured"] = dict.fromkeys(content["measured"], line)
    path.write_text(json.dumps(content))
    measured.forget()
    clock.asked.clear()
    assert choose()[0] == "reference"
    assert clock.asked


def test_another_version_measures_for_itself(arena, clock, monkeypatch):
    arena(cpu=(2.0, right), reference=(1.0, right))
    choose()
    (first,) = files()
    measured.forget()
    monkeypatch.setattr("bertfast.__version__", "99.0")
    clock.asked.clear()
    choose()
    assert clock.asked
    (second,) = set(files()) - {first}
    second.write_text(first.read_text())  # a file with the right name and another identity: stale
    measured.forget()
    clock.asked.clear()
    assert choose()[0] == "reference"
    assert clock.asked
    assert json.loads(second.read_text())["identity"]["bertfast"] == "99.0"


def test_a_folder_that_cannot_be_written(arena, clock, monkeypatch, tmp_path, caplog):
    """Measurements hold for the process; it is said once."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    measured.forget()
    table._say_once.cache_clear()
    arena(cpu=(2.0, right), reference=(1.0, right))
    assert choose()[0] == choose((torch.randn(9, 3), *ARGS[1:]))[0] == "reference"
    asked = len(clock.asked)
    assert choose()[0] == "reference"
    assert len(clock.asked) == asked
    assert caplog.text.count("measurements are not kept for the next process") == 1


def test_a_user_without_a_home(arena, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    measured.forget()
    arena(cpu=(2.0, right), reference=(1.0, right))
    assert choose()[0] == choose()[0] == "reference"
