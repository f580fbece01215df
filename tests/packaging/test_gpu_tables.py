"""The tables and plots of a GPU's times, from samples that are made up: no GPU is here to take any."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package benchmarks

from benchmarks import gpu
from harness.costs import Cost


@pytest.fixture
def race(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    race = gpu.GpuRace("model 8x128 forward + backward", 1024, Cost(989e9, 3.35e9), "eager")
    race.samples = {"bertfast": [2e-3, 3e-3, 1e-3], "eager": [4e-3, 6e-3, 4e-3]}
    race.skipped = {"flash-attn": "absent"}
    return race


def test_figures_are_medians_over_the_roofline(race):
    found = race.figures("bertfast")
    assert found["real_tokens_per_second"] == 512_000
    assert found["speed_over_eager"] == 2
    assert found["tflops"] == 494.5
    assert found["gbytes_per_second"] == 1675
    assert found["share_of_roofline"] == 0.5


def test_written_whole_as_json_and_image(race, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    row = race.row()
    assert (row["operation"], row["load"]) == ("model", "8x128")
    assert row["direction"] == "forward + backward"
    assert row["microseconds"] == {"bertfast": 2000, "eager": 4000, "roofline": 1000}
    other = {**row, "load": "1x128", "microseconds": {"eager": 7}}
    written = gpu.write_table(tmp_path / "new" / "times.json", "made up", [row, other])
    assert json.loads(written[0].read_text()) == {"what": "made up", "rows": [row, other]}
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert sorted(written[0].parent.iterdir()) == written


def test_a_card_without_a_roofline_has_no_share(race, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce GTX 1080")
    assert race.figures("eager")["share_of_roofline"] is None
    assert "roofline" not in race.row()["microseconds"]
