"""The comparison with other engines: the protocol of its processes, which samples it drops, what it makes of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.peers import chart, report, text
from benchmarks.peers.cpu_time import Reading, Sample, TooBusy, compare, undisturbed
from benchmarks.peers.engines import Job
from benchmarks.peers.process import ContenderFailed, Process
from benchmarks.peers.rounds import Race

HERE = Path(__file__).parent  # of echo_engine
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def start(tmp_path):
    """Starts the echoing engine with a factor."""
    ids = np.arange(6).reshape(2, 3)
    np.savez(tmp_path / "good.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    np.savez(tmp_path / "empty.npz", input_ids=ids, attention_mask=np.zeros_like(ids))
    opened = []

    def run(factor):
        job = Job("echo_engine", tmp_path, tmp_path / "own", tmp_path, 1, {"factor": factor})
        paths = {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
        process = Process(job, tmp_path / "log", paths)
        opened.append(process)
        return process

    yield run
    for process in opened:
        process.close()


def test_protocol(start, tmp_path):
    process = start(2)
    process.ask("convert")
    process.ask("load")
    process.ask("prepare", load="good", output=tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").tolist() == [[[0], [2], [4]], [[6], [8], [10]]]
    sample = process.ask("run", calls=3)
    assert sample["seconds"] > 0
    assert 0 <= sample["others"] <= 1
    memory = process.ask("memory")
    assert 1 < memory["resident"] <= memory["peak"]
    with pytest.raises(ContenderFailed, match="^ValueError: no token$"):
        process.ask("prepare", load="empty", output=tmp_path / "out.npy")
    assert process.ask("run", calls=1)["seconds"] > 0
    printed = (tmp_path / "log").read_text()
    assert "must not disturb" in printed
    assert "nor what" in printed


def test_a_process_that_ends(start, tmp_path):
    process = start("die")
    process.ask("load")
    for _ in range(2):
        with pytest.raises(ContenderFailed, match=r"ended with 3; see .*log"):
            process.ask("prepare", load="good", output=tmp_path / "out.npy")


@pytest.mark.parametrize(
    ("idle", "own", "others"),
    [(0.0, 2.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.5, 0.24), (0.0, 1.0, 0.49)],
    ids=["all its own", "half idle", "a quarter taken", "half taken"],
)
def test_share_of_others(idle, own, others):
    """A second on two CPUs, whose idleness may be off by a tick of a hundredth each."""
    sample = compare(Reading(7, 3, 5), Reading(8, 3 + idle, 5 + own), cpus=2)
    assert sample.seconds == 1
    assert round(sample.others, 9) == others


def test_disturbed_samples_are_taken_again():
    samples, waits = iter([Sample(3, 0.5), Sample(2, 0.06), Sample(1, 0.05)]), []
    taken = undisturbed(lambda: next(samples), 0.05, 12, waits.append)
    assert taken == (Sample(1, 0.05), 2)
    assert waits == [0.5, 1.0]


def test_a_machine_that_is_never_quiet():
    calls, waits = [], []
    with pytest.raises(TooBusy, match="3 samples in a row were dropped: .* took 40% of the CPU"):
        undisturbed(lambda: calls.append(1) or Sample(1, 0.4), 0.05, 2, waits.append)
    assert len(calls) == 3


def test_rounds_leave_out_who_fails(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.rounds.PAUSE", 0)
    order = []

    def contender(name, seconds, failing_from=99):
        def ask(do, calls):
            order.append(name)
            if order.count(name) >= failing_from:
                raise ContenderFailed("gone")
            return {"seconds": seconds * calls, "others": 0.0}

        return SimpleNamespace(ask=ask)

    quick, slow, bad = contender("a", 0.125), contender("b", 1.0), contender("c", 1.0, 3)
    race = Race({"a": quick, "b": slow, "c": bad}, allowed=0.05, most_dropped=0)
    race.run(3)
    assert race.timings["a"].calls == 3
    assert race.timings["a"].seconds == [0.125] * 3
    assert race.timings["b"].seconds == [1.0] * 3
    assert race.failed == {"c": "gone"}
    assert set(race.timings) == {"a", "b"}
    assert "".join(order[3:]) == "aabcaabcaab"  # in turn; short calls have one more, uncounted


def test_texts_come_back_in_their_order():
    lengths = [3, 9, 1, 40] * 20
    tokenizer = SimpleNamespace(
        encode_batch_fast=lambda texts: [SimpleNamespace(ids=[n] * n) for n in texts]
    )
    widths = []

    def forward(batch):
        widths.append(batch["input_ids"].shape[1])
        ids = batch["input_ids"].astype(np.float64)
        return np.stack([ids, np.ones_like(ids)], -1)  # padding must not count

    vectors = text.encode(tokenizer, lengths, forward)
    assert (vectors[:, 0] / vectors[:, 1]).round(9).tolist() == lengths
    assert widths == [40, 9, 1]


@pytest.fixture
def results():
    """Of one load, in part failed."""

    def figure(*seconds):
        return {"ms": sorted(seconds)[1] * 1e3, "seconds": seconds}

    contenders = {
        "bertfast": figure(1, 1, 2),
        "transformers sdpa": figure(4, 4, 5),
        "OpenVINO fp32": figure(2, 3, 4),
        "OpenVINO int8": figure(0.1, 0.1, 0.1),
        "CTranslate2 fp32": {"failed": "no"},
    }
    model = {"loads": {"1x16": {"contenders": contenders}}, "memory": {}, "failed": {}}
    words = ("date", "processor", "cpus", "instruction_set", "threads")
    numbers = {"fma_flops": 1e9, "read_bytes": 1e9}
    return {
        "command": "x",
        "rounds": 3,
        "machine": {**dict.fromkeys(words, "x"), **numbers, "versions": {}},
        "absent": {"torch.compile": "not there"},
        "models": {"base": model},
    }


def test_ratio_is_to_the_fastest_peer_in_fp32(results, tmp_path):
    report.write(results, tmp_path)
    table = (tmp_path / "peers.md").read_text().splitlines()
    assert "| bertfast | 1000 |" in table
    assert "| OpenVINO fp32 | **3000** |" in table
    assert "| bertfast, × fastest fp32 peer | 2.00 |" in table
    assert "- torch.compile left out: not there." in table
    assert "- CTranslate2 fp32 failed (BERT-base): 1x16: no." in table


def test_charts_need_no_fonts(results, tmp_path):
    chart.write(results, tmp_path)
    for theme in ("light", "dark"):
        image = (tmp_path / f"peers-{theme}.svg").read_text()
        assert "<path" in image
        assert "<text" not in image
