"""What is compiled once for all."""

from __future__ import annotations

import threading
import time

import pytest

from gpu_code import kept


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "kept")
    return tmp_path / "kept"


def test_two_at_a_time_make_it_once():
    made, found = [], []

    def make(path):
        made.append(path)
        time.sleep(0.2)
        path.write_text("whole")

    threads = [
        threading.Thread(target=lambda: found.append(kept.kept("it", make).read_text()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["whole"] * 2
    assert len(made) == 1


def test_what_fails_is_not_kept(folder):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        kept.kept("it", fail)
    assert not (folder / "it").exists()
    assert kept.kept("it", lambda path: path.write_text("whole")).read_text() == "whole"
