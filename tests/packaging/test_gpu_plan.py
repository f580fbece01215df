"""The plan of `make gpu` without a GPU: steps that end badly, every line of every step on the stand-in, the report."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType, SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package benchmarks

import harness
from benchmarks.gpu_plan import __main__, device, plan, report, results, stand_in, step
from benchmarks.gpu_plan.steps import captured, checks
from benchmarks.peers.gpu import peers
from bertfast.errors import UnsupportedError
from harness import Case

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/gpu_plan"
# What a step of a test does after it has written a row, and how it ends.
ENDS = {
    "fails": ("raise SystemExit(3)", "exit code 3"),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
    "hangs": (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "(file.parent / 'child').write_text(str(child.pid))\ntime.sleep(60)",
        "stopped after 5 s",
    ),
    "in_part": ("raise SystemExit(4)", "done but for what failed"),
    "goes_on": ("pass", "done"),
}
SCRIPT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu_plan.results import Results
file = Path(sys.argv[1])
Results(file, {"stand_in": False, "device": "nothing"}).add("Table", found="a row of " + file.stem)
print("last words of", file.stem, flush=True)
"""


def test_a_step_that_ends_badly_does_not_stop_the_next(tmp_path):
    minutes = {"hangs": 5 / 60}  # enough to write its row on a busy machine
    steps = [plan.Step(name, f"title of {name}", minutes.get(name, 1)) for name in ENDS]
    started = []

    def command(asked, file, seconds):
        text = (tmp_path / "report.md").read_text() if started else ""
        for name in started:  # a report is there after each, with what the step had written
            assert f"title of {name}: {ENDS[name][1]}" in text
            assert f"a row of {name}" in text
            assert (f"last words of {name}" in text) == (ENDS[name][1] != "done")
        started.append(asked.name)
        return [sys.executable, "-c", SCRIPT + ENDS[asked.name][0], str(file)]

    found = plan.run(steps, tmp_path, command)
    assert {step["step"]: step["outcome"] for step in found} == {
        name: outcome for name, (_, outcome) in ENDS.items()
    }
    assert "title of goes_on: done" in (tmp_path / "report.md").read_text()
    assert [results.read(tmp_path / f"{name}.json")["outcome"] for name in ENDS] == [
        outcome for _, outcome in ENDS.values()
    ]
    assert not list(tmp_path.glob("*.new"))
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    with contextlib.suppress(FileNotFoundError):  # the process that a step started ends with it
        assert child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_minutes_are_shared(tmp_path):
    seen = []

    def command(asked, file, seconds):
        seen.append(seconds)
        return [sys.executable, "-c", ""]

    found = plan.run([plan.Step("a", "", 3), plan.Step("b", "", 1)], tmp_path, command, 2)
    assert seen == [90, 30]
    assert [step["outcome"] for step in found] == ["done", "done"]
    assert sum(step.minutes for step in plan.STEPS) < plan.MINUTES
    assert {step.name for step in plan.STEPS} == {
        path.stem for path in FOLDER.glob("steps/*.py") if path.stem != "__init__"
    }


@contextlib.contextmanager
def _traced():
    """The lines of the plan's functions that run in the block: {file: numbers}."""
    ran: dict[str, set[int]] = {}

    def local(frame, event, _):
        if event == "line":
            ran[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def every(frame, event, _):
        if not frame.f_code.co_filename.startswith(str(FOLDER)):
            return None
        ran.setdefault(frame.f_code.co_filename, set())
        return local

    before = sys.gettrace()
    sys.settrace(every)
    try:
        yield ran
    finally:
        sys.settrace(before)


def _lines(file: Path) -> set[int]:
    """Numbers of the lines that a file's functions hold."""

    def inside(code: CodeType):
        for part in code.co_consts:
            if isinstance(part, CodeType):
                if part.co_flags & 2:  # CO_NEWLOCALS: a function, no class body
                    yield from (line for _, _, line in part.co_lines() if line)
                    yield -part.co_firstlineno  # its own line is no event
                yield from inside(part)

    found = set(inside(compile(file.read_text(), str(file), "exec")))
    return {line for line in found if line > 0 and -line not in found}


def _rest(at: device.Device, found: results.Results, monkeypatch) -> None:
    """Lines that a machine without a GPU does not come by: tools that are absent, what other versions have."""
    from bertfast import BertModel

    asked = []
    monkeypatch.setattr(
        BertModel, "capture", lambda self, shapes: asked.append(shapes), raising=False
    )
    contenders = {}
    with torch.no_grad():
        truth = captured.models_at(at, "8x128")["bertfast"]()["out"]
    captured._own_graphs(at, found, "8x128", truth, 1.0, contenders)
    assert asked == [[(3, 2)]]
    assert list(contenders) == ["bertfast.graphs"]
    with monkeypatch.context() as without:
        without.setattr(captured, "ours", lambda device: object())
        captured._own_graphs(at, found, "8x128", truth, 1.0, contenders)
    assert found.skipped == {"bertfast.graphs": "not in this version"}
    for error in (FileNotFoundError("no such tool"), subprocess.TimeoutExpired("x", 3)):

        def tool(*_, error=error, **__):
            raise error

        absent = SimpleNamespace(tool=tool)
        with found.trying("checks, absent"):
            checks._check(absent, found, "memcheck", 3)
        assert device.Device._said(SimpleNamespace(tool=tool), ["x"]).startswith("no answer")
    assert found.skipped["memcheck"] == "compute-sanitizer is not on PATH"
    assert found.failures == {"checks, absent": "AssertionError: stopped after 3 s"}
    cards = SimpleNamespace(stand_in=False, roof=device.gpu.ROOFS["H200"])
    assert captured.predicted_us(cards, "1x128", False) > 10


def test_every_line_of_every_step_runs(tmp_path, monkeypatch, capsys):
    steps = []
    with _traced() as ran:
        at = stand_in.device()
        for asked in plan.STEPS:
            file = tmp_path / f"{asked.name}.json"
            code = step.run(asked.name, file, at)
            found = results.read(file)
            assert (code, found["failures"]) == (0, {}), asked.name
            steps.append(
                {**found, "title": asked.title, "outcome": "done", "output": [], "seconds": 1}
            )
            steps[-1]["limit_seconds"] = 2
        other = results.Results(tmp_path / "other.json", {})
        _rest(at, other, monkeypatch)
    for file in [
        *FOLDER.glob("steps/*.py"),
        *(FOLDER / f"{n}.py" for n in ("device", "models", "stand_in")),
    ]:
        missing = _lines(file) - ran.get(str(file), set())
        assert not missing, f"{file.name}: lines {sorted(missing)} did not run"
    _has_no_speed(report.text(steps))


def _has_no_speed(text: str) -> None:
    """The report of a stand-in: each figure is a prediction, or a count."""
    assert text.startswith("# bertfast, GPU plan: STAND-IN, no GPU\n")
    timed, columns = 0, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif "---" not in line:
            for name, cell in zip(columns, cells, strict=True):
                if name.endswith(tuple(report.UNITS.values())) and "*predicted*" not in name:
                    timed += 1
                    assert cell in (report.NOT_TIMED, "–"), f"{name}: {cell}"
    assert timed > 300


def test_one_command(tmp_path):
    """Through the processes, as `make gpu` does it."""
    command = [sys.executable, "-m", "benchmarks.gpu_plan", "--stand-in", "--only", "checks"]
    done = subprocess.run(
        [*command, "--minutes", "1", "--out", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(at most 60 s)" in done.stdout
    found = results.read(tmp_path / "checks.json")
    assert [row["outcome"] for row in found["tables"]["Checks"]] == ["exit code 0"] * 3
    assert found["header"]["stand_in"]
    assert "STAND-IN" in (tmp_path / "report.md").read_text().splitlines()[0]


def test_sanitizer_has_cases():
    """What its command selects of an operation, on a GPU."""
    command = checks.command_of("memcheck")
    command = command[command.index(sys.executable) :]
    command[command.index("tests/ops")] += "/test_linear_gelu.py"
    done = subprocess.run([*command, "--collect-only"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"::(test_.*)\[odd-seed\d+-bf16-(.*)\]", done.stdout)) == {
        (f"test_{direction}", ends)
        for backend in ("cuda", "triton", "triton:torch")
        for direction, ends in (("forward", backend), ("backward", f"{backend}-{backend}"))
    }


def test_without_a_gpu_nothing_is_timed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(__main__, "_sees_gpu", lambda: False)
    assert __main__.main(["--out", str(tmp_path / "new")]) == 0
    assert "none was timed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_a_report_of_a_card_says():
    header = {"stand_in": False, "device": "NVIDIA H100"}
    rows = [{"load": "8x128", "median_us": 12.5, "predicted_us": None, "bertfast_x": 1.5}]
    one = {
        "header": header,
        "title": "T",
        "outcome": "exit code 1",
        "seconds": 3,
        "limit_seconds": 9,
    }
    text = report.text(
        [{**one, "tables": {"Times": rows}, "failures": {"a": "b"}, "output": ["end"]}]
    )
    assert "timed on NVIDIA H100" in text
    assert "| load | median µs | *predicted* µs | bertfast × |" in text
    assert "| 8x128 | 12.5 | – | 1.5 |" in text
    assert "- Failed: a: b" in text
    assert "| T | exit code 1 | 3 of 9 |" in text
    assert "\nend\n" in text


def test_a_part_that_refuses_is_left_out(tmp_path):
    found = results.Results(tmp_path / "a.json", {})
    for error in (UnsupportedError("no\nmore"), NotImplementedError("none"), ValueError("wrong")):
        with found.trying(type(error).__name__):
            raise error
    kept = results.read(tmp_path / "a.json")
    assert kept["skipped"] == {"UnsupportedError": "no", "NotImplementedError": "none"}
    assert kept["failures"] == {"ValueError": "ValueError: wrong"}


def test_time_of_kernels_that_overlap():
    kernels = [device.Kernel("a", 0, 4), device.Kernel("b", 2, 3), device.Kernel("c", 6, 7)]
    assert device.busy(kernels) == 5
    assert device.gaps(kernels) == [0, 2]
    found = device.spread([n * 1e-6 for n in range(1, 12)])
    assert (found["median_us"], found["low_us"], found["high_us"]) == (6, 2, 10)


@pytest.mark.parametrize("name", ["varlen", "flash-attn"])
def test_packed_peers(name, monkeypatch):
    """Modules as torch and flash_attn have them, computing sequence by sequence on the CPU."""

    def attend(q, k, v, cu_seqlens, scale):
        parts = []
        for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
            own = [x[start:end].transpose(0, 1) for x in (q, k, v)]
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(*own, scale=scale).transpose(0, 1)
            )
        return torch.cat(parts)

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k):
        assert torch.equal(cu_q, cu_k)
        assert max_q == max_k
        return attend(q, k, v, cu_q, None)

    def qkvpacked(qkv, cu_seqlens, max_seqlen, softmax_scale):
        return attend(*qkv.unbind(1), cu_seqlens, softmax_scale)

    modules = {
        "varlen": ("torch.nn.attention.varlen", SimpleNamespace(varlen_attn=varlen_attn)),
        "flash-attn": ("flash_attn", SimpleNamespace(flash_attn_varlen_qkvpacked_func=qkvpacked)),
    }
    monkeypatch.setitem(sys.modules, *modules[name])
    case = Case("two", (3, 5), outer=16, heads=2)
    inputs = harness.make_inputs("attention", case, torch.float32)
    found = peers("attention", case, inputs, {}, lambda function: function)
    harness.check_function("attention", case, torch.float32, found[name].function)
