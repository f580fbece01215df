"""Measuring backends when it is asked for: the accuracy check, the race, the table, and who reads it."""

from __future__ import annotations

import json
import multiprocessing
from types import SimpleNamespace

import pytest
import torch

import harness
from bertfast import dispatch, tuning
from bertfast.core.weights import example_weights
from bertfast.dispatch import decisions
from bertfast.dispatch.calls import key_of
from bertfast.dispatch.decisions import Decision
from bertfast.tuning import measuring
from harness import Case

CPU = torch.device("cpu")
CASE = Case("", (5, 3), inner=12, outer=8)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decisions.forget()
    yield
    decisions.forget()
    decisions.take_from_run(None)


@pytest.fixture
def contenders(monkeypatch):
    """linear_gelu with backends that the test gives: name -> what it does to the right result, or why it refuses."""
    real = {name: dispatch.backends_of("linear_gelu")[name] for name in ("reference", "eager")}

    def fill(**given):
        found = {name: _backend(real["reference"], change) for name, change in given.items()}
        monkeypatch.setitem(dispatch._BACKENDS, "linear_gelu", {**real, **found})
        return tuple(found)

    return fill


def _backend(reference, change):
    refuses = change if isinstance(change, str) else None
    return SimpleNamespace(
        forward=lambda *args: change(reference.forward(*args)),
        backward=lambda *args: change(reference.backward(*args)),
        supports=lambda call: refuses,
    )


def right(results):
    return results


def wrong(results):
    return (results[0] * 1.01, *results[1:])


def raising(results):
    raise ValueError("no such\nkernel")


def _clock(**seconds):
    """A stopwatch that says what it is told; a list: one after the other."""
    asked = []

    def stopwatch(run, device):
        with dispatch.record() as log:
            run()
        name = log[-1].backend
        asked.append(name)
        said = seconds[name]
        return said.pop(0) if isinstance(said, list) else said

    return stopwatch, asked


def _autotune(names, direction="forward", **seconds):
    stopwatch, asked = _clock(**seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "CANDIDATES", names)
        patch.setattr(measuring, "stopwatch", stopwatch)
        given = ("linear_gelu", direction, CASE, torch.float32, CPU)
        _, decision = tuning.autotune(*given, save=True)
    return decision, asked


def test_the_fastest_wins(contenders):
    decision, asked = _autotune(contenders(cuda=right, triton=right), cuda=2.0, triton=1.0)
    assert decision == Decision("triton", {"cuda": 2.0, "triton": 1.0}, {})
    assert asked[:4] == ["cuda", "triton"] * 2
    assert min(asked.count(name) for name in ("cuda", "triton")) >= measuring.SAMPLES


def test_nearly_as_fast_changes_nothing(contenders):
    decision, _ = _autotune(contenders(cuda=right, triton=right), cuda=1.04, triton=1.0)
    assert decision.backend == "cuda"


def test_one_slow_sample_decides_nothing(contenders):
    slow_once = [50.0, *[1.0] * 30]
    decision, _ = _autotune(contenders(cuda=right, triton=right), cuda=slow_once, triton=2.0)
    assert decision == Decision("cuda", {"cuda": 1.0, "triton": 2.0}, {})


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_is_wrong_or_raises_is_rejected_and_never_timed(contenders, direction):
    names = contenders(cuda=wrong, triton=raising, cpu=right)
    decision, asked = _autotune(names, direction, cpu=9.0)
    assert decision.backend == "cpu"
    assert decision.rejected["cuda"].startswith("above tolerance: ")
    assert decision.rejected["triton"] == "raised ValueError: no such kernel"
    assert set(asked) == {"cpu"}


def test_failing_only_when_timed(contenders):
    decision, _ = _autotune(contenders(cuda=right, triton=right), cuda=[1.0], triton=2.0)
    assert decision.backend == "triton"
    assert decision.rejected == {"cuda": "raised IndexError: pop from empty list"}


def test_nothing_right_decides_nothing(contenders):
    assert _autotune(contenders(cuda=wrong, triton="not here"))[0] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True])
def test_right_backends_pass_at_every_size_of_a_model(dtype, training):
    """Texts of equal tokens, few or many: the inputs are made, so that there is always something to tell."""
    weights, _ = example_weights("cpu")
    for tokens in (1, 16, 200):
        for operation, case in tuning.workload(weights, tokens, 64, training):
            for direction in ("forward", "backward") if training else ("forward",):
                call, expected = measuring.expectation(
                    operation, direction, case, dtype, CPU, training
                )
                assert expected
                for name in ("cpu", "eager"):
                    backend = dispatch.backends_of(operation)[name]
                    if backend.supports(call) is None:
                        measuring.check(call, getattr(backend, direction)(*call), expected)


@pytest.mark.parametrize("operation", harness.OPERATIONS)
def test_each_result_and_gradient_is_checked(operation):
    """One that is off by a hundredth, or is NaN in one place, is rejected."""
    reference = dispatch.backends_of(operation)["reference"]
    case = harness.cases(operation)[1]
    for direction in ("forward", "backward"):
        call, expected = measuring.expectation(operation, direction, case, torch.float32, CPU, True)
        results = getattr(reference, direction)(*call)
        several = results if isinstance(results, tuple) else (results,)
        measuring.check(call, results, expected)
        for index, result in enumerate(several):
            if result is None:
                continue
            nan = result.clone()
            nan.view(-1)[0] = torch.nan
            for spoilt in (result * 1.01, nan):
                with pytest.raises(AssertionError):
                    measuring.check(
                        call, (*several[:index], spoilt, *several[index + 1 :]), expected
                    )


def _key(tokens=8):
    case = Case("", (tokens,), inner=12, outer=8)
    return key_of(harness.arguments("linear_gelu", "forward", case, torch.bfloat16, save=False))


DECISION = Decision("triton", {"triton": 1e-5, "cuda": 2e-5}, {"eager": "raised Oops: a reason"})


def test_a_table_is_read_by_the_next_process(tmp_path):
    path = tuning.write(CPU, {_key(): DECISION})
    assert path.is_relative_to(tmp_path)
    assert decisions.table(CPU) == {_key().text(): DECISION}
    again = DECISION._replace(backend="cuda")
    tuning.write(CPU, {_key(): again, _key(99): DECISION})
    assert decisions.table(CPU) == {_key().text(): again, _key(99).text(): DECISION}


def test_keys_tell_apart_what_differs_in_speed(monkeypatch):
    case = harness.cases("linear_gelu")[1]
    call = harness.arguments("linear_gelu", "forward", case, torch.float32)
    plain = key_of(call)
    monkeypatch.setattr("bertfast.extension.allows_tf32", lambda: True)
    assert key_of(call) == plain._replace(dtype="tf32")
    assert key_of(call._replace(save=False)).text() != key_of(call).text()
    assert key_of(harness.arguments("linear_gelu", "forward", case, torch.float64)) is None


def test_identity_holds_everything_that_a_measurement_depends_on():
    assert set(decisions.identity(CPU)) == {
        *("bertfast", "torch", "triton", "device", "cuda driver", "kernel driver", "kernels"),
    }


GARBAGE = {
    "empty": "",
    "torn": '{"format": 2, "identity": {',
    "bytes": "\x00\x01",
    "list": "[1, 2]",
    "other format": '{"format": 99, "decisions": {}}',
    "no identity": '{"format": 2, "decisions": {"KEY": {"backend": "cuda"}}}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("content", list(GARBAGE.values()), ids=list(GARBAGE))
def test_a_corrupt_file_counts_as_empty(content):
    path = tuning.write(CPU, {_key(): DECISION})
    good = path.read_text()
    path.write_text(content)
    decisions.forget()
    assert decisions.table(CPU) == {}
    tuning.write(CPU, {_key(): DECISION})
    assert path.read_text() == good


@pytest.mark.parametrize(
    "line",
    [
        None,
        "cuda",
        {"backend": "abacus", "microseconds": {}, "rejected": {}},
        {"backend": "cuda", "microseconds": {"cuda": "fast"}, "rejected": {}},
        {"backend": "cuda", "microseconds": {}, "rejected": {"cuda": "wrong"}},
        {"backend": "cuda", "microseconds": {"triton": 1.0}, "rejected": {}},
        {"backend": ["cuda"], "microseconds": {}, "rejected": {}},
    ],
)
def test_a_line_that_makes_no_sense_is_left_out(line):
    path = tuning.write(CPU, {_key(): DECISION, _key(99): DECISION})
    content = json.loads(path.read_text())
    content["decisions"][_key().text()] = line
    path.write_text(json.dumps(content))
    decisions.forget()
    assert decisions.table(CPU) == {_key(99).text(): DECISION}


def test_other_kernels_or_versions_have_another_file(monkeypatch):
    first = tuning.write(CPU, {_key(): DECISION})
    monkeypatch.setattr(decisions, "kernels", lambda: "others")
    decisions.forget()
    assert decisions.table(CPU) == {}
    second = decisions.path_of(CPU)
    assert second != first
    second.write_text(first.read_text())  # the right name and another identity: stale
    decisions.forget()
    assert decisions.table(CPU) == {}


def _write(number):
    for index in range(8):
        tuning.write(CPU, {_key(1 << index)._replace(operation=f"writer {number}"): DECISION})


def test_writers_at_the_same_time_lose_nothing():
    """Every line of every process is there at the end, and the file was whole whenever it was read."""
    context = multiprocessing.get_context("fork")
    _key(), decisions.identity(CPU)  # compiled and hashed before the fork
    writers = [context.Process(target=_write, args=(n,)) for n in range(3)]
    for writer in writers:
        writer.start()
    path = decisions.path_of(CPU)
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            json.loads(path.read_text())
    assert [writer.exitcode for writer in writers] == [0] * 3
    assert len(decisions.table(CPU)) == 3 * 8
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_the_table_of_a_run_goes_before_the_users():
    tuning.write(CPU, {_key(): DECISION})
    decisions.take_from_run({_key(99).text(): decisions.line_of(DECISION)})
    assert decisions.table(CPU) == {_key(99).text(): DECISION}
    decisions.take_from_run(None)
    assert decisions.table(CPU) == {_key().text(): DECISION}


def test_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert tuning.write(CPU, {_key(): DECISION}) is None
    assert decisions.table(CPU) == {}


class OnGpu:
    """Calls of linear_gelu as a GPU's, with backends that only tell that they were called."""

    def __init__(self, monkeypatch, **refusals):
        made = {
            name: SimpleNamespace(
                supports=lambda call, name=name: refusals.get(name),
                forward=lambda *args, name=name: name + dispatch.product(),
            )
            for name in dispatch.NAMES
        }
        monkeypatch.setitem(dispatch._BACKENDS, "linear_gelu", made)
        self.patch = monkeypatch

    def call(self, tokens=8, dtype=torch.bfloat16):
        case = Case("", (tokens,), inner=12, outer=8)
        call = harness.arguments("linear_gelu", "forward", case, dtype, save=False)
        lead = SimpleNamespace(
            device=torch.device("cuda", 0), dtype=dtype, shape=call.x.shape, is_cuda=True
        )
        kind = type(call)
        on_gpu = type(kind.__name__, (kind,), {"__slots__": (), "lead": lead})
        return on_gpu(*call)


@pytest.fixture
def gpu(monkeypatch):
    return OnGpu(monkeypatch)


def _use(gpu, key, decision):
    decisions.take_from_run({key.text(): decisions.line_of(decision)})


def test_a_gpu_takes_what_its_table_says(gpu):
    _use(gpu, _key(), DECISION)
    with dispatch.record() as log:
        assert dispatch.run(gpu.call()) == "triton"
        assert dispatch.run(gpu.call(tokens=99)) == "cuda"
    assert log[0].reasons == {
        "eager": "rejected: raised Oops: a reason",
        "cuda": "measured 20 us, triton 10 us",
    }
    by_torch = {"triton:torch": 1e-6, **DECISION.seconds}
    _use(gpu, _key(), DECISION._replace(backend="triton:torch", seconds=by_torch))
    assert dispatch.run(gpu.call()) == "triton:torchtorch"
    assert dispatch.product() == ""


def test_what_is_known_holds_under_capture_and_compile(gpu, monkeypatch):
    _use(gpu, _key(), DECISION)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert dispatch.run(gpu.call()) == "triton"


def test_nothing_is_measured_and_no_clock_is_read(gpu, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("a clock was read"))
    monkeypatch.setattr(measuring, "race", lambda *args: pytest.fail("something was measured"))
    assert dispatch.run(gpu.call()) == "cuda"


def test_a_winner_that_refuses_and_rejected_backends_are_passed_over(monkeypatch):
    gpu = OnGpu(monkeypatch, triton="not these strides")
    _use(gpu, _key(), DECISION._replace(rejected={"cuda": "above tolerance: out"}))
    with dispatch.record() as log:
        assert dispatch.run(gpu.call()) == "eager"
    assert log[0].reasons["triton"] == "not these strides"
    assert log[0].reasons["cuda"] == "rejected: above tolerance: out"


def test_the_shipped_table(gpu, monkeypatch):
    monkeypatch.setattr(decisions, "_capability", lambda device: 90)
    assert dispatch.run(gpu.call(tokens=4096)) == "triton:torchtorch"
    assert dispatch.run(gpu.call(tokens=64)) == "cuda"
    assert dispatch.run(gpu.call(tokens=4096, dtype=torch.float32)) == "cuda"
    monkeypatch.setattr(decisions, "_capability", lambda device: 80)
    assert dispatch.run(gpu.call(tokens=4096)) == "cuda"


def test_batch_invariant_pins_the_backend(gpu, monkeypatch):
    monkeypatch.setattr(decisions, "_capability", lambda device: 90)
    _use(gpu, _key(), DECISION)
    with dispatch.batch_invariant():
        assert {dispatch.run(gpu.call(tokens=n)) for n in (8, 64, 4096)} == {"cuda"}
