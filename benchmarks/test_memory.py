"""Peak memory of one forward on the ragged batch, each contender in a process of its own (Linux).

Steady state: the resident memory of the process after one forward. Above it: what the next forward adds at its peak.
The row's time is not a speed; the figures are in extra_info.
"""

from __future__ import annotations

import pytest
import torch

from . import models
from .memory import measure_call
from .peers import transformers_bert

SHAPE, LOAD = "base", "ragged-32"
CONTENDERS = ("bertfast", "bertfast-prepacked", "sdpa")


def measure(pipe, name: str, threads: int) -> None:
    """In a process of its own: sends (steady MiB, MiB above it at the peak of one forward)."""
    torch.set_num_threads(threads)
    model, batch = models.model(SHAPE), models.batch(LOAD)
    if name == "sdpa":
        model = transformers_bert.build(models.config(SHAPE), model.state_dict(), "sdpa")
    if name == "bertfast-prepacked":
        model.prepack()
    with torch.no_grad():
        pipe.send(measure_call(lambda: model(**batch)))


@pytest.mark.parametrize("name", CONTENDERS)
def test_memory(benchmark, name, in_own_process):
    in_own_process(benchmark, f"forward {SHAPE} {LOAD}", name, measure)
