"""Peak memory of one forward on the ragged batch, each contender in a process of its own (Linux).

Steady state: the resident memory of the process after one forward. Above it: what the next forward adds at its peak.
The row's time is not a speed; the figures are in extra_info.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from multiprocessing import get_context

import pytest
import torch

from . import models
from .peers import transformers_bert

SHAPE, LOAD = "base", "ragged-32"
CONTENDERS = ("bertfast", "bertfast-frozen", "sdpa")


def measure(pipe, name: str, threads: int) -> None:
    """Sends (steady MiB, MiB above it at the peak of one forward)."""
    torch.set_num_threads(threads)
    model, batch = models.model(SHAPE), models.batch(LOAD)
    if name == "sdpa":
        model = transformers_bert.build(models.config(SHAPE), model.state_dict(), "sdpa")
    if name == "bertfast-frozen":
        model.freeze()
    with torch.no_grad():
        model(**batch)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")  # VmHWM starts again from now
        steady = _status("VmRSS")
        model(**batch)
    pipe.send((steady, _status("VmHWM") - steady))


def _status(key: str) -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("name", CONTENDERS)
def test_memory(benchmark, name, record_memory):
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    context = get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(send, name, torch.get_num_threads()))
    process.start()
    steady, above = receive.recv()
    process.join()
    record_memory(name, steady, above)
    benchmark.group = f"memory {SHAPE} {LOAD}"
    benchmark.extra_info.update(steady_mib=round(steady), above_steady_mib=round(above))
    benchmark.pedantic(lambda: None, rounds=1)
