"""The file of measurements: several processes write it at the same time."""

from __future__ import annotations

import json
import multiprocessing
import threading

import pytest
import torch

from bertfast.dispatch import table

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _write(number, identity, count):
    mine = table.Table(identity)
    for index in range(count):
        decision = table.Decision("cpu", {"cpu": number + 1.0}, {})
        mine.add(f"writer {number} line {index}", decision)
        mine.add("shared", decision)


def test_writers_at_the_same_time_lose_nothing():
    """Every line of every process is there at the end, and the file was whole whenever it was read."""
    identity = table.identity(CPU)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(n, identity, 25)) for n in range(4)]
    for writer in writers:
        writer.start()
    path = table.path_of(identity)
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            json.loads(path.read_text())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = table.Table(identity).decisions
    assert found.keys() == {"shared"} | {
        f"writer {n} line {i}" for n in range(4) for i in range(25)
    }
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".lock"]


def test_the_first_of_two_processes_stays():
    """All agree on what was written first, unless one is tuning."""
    identity = table.identity(CPU)
    one, two = table.Table(identity), table.Table(identity)
    first, second = (table.Decision(form, {form: 1.0}, {}) for form in ("cpu", "torch"))
    assert one.add("key", first) == first
    assert two.add("key", second) == first
    assert two.add("key", second, replace=True) == second
    one.refresh()
    assert one.decisions["key"] == second


def test_a_lock_that_is_never_given_back(monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(table, "_LOCK_S", 0.05)
    mine = table.Table(table.identity(CPU))
    mine.path.parent.mkdir(parents=True)
    with open(mine.path.with_suffix(".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(
            target=mine.add, args=("key", table.Decision("cpu", {"cpu": 1.0}, {}))
        )
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert "key" in table.Table(table.identity(CPU)).decisions
