"""What tests of CUDA graphs share: a small model, and an emulated card whose graphs are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from torch.utils._python_dispatch import _disable_current_modes

from bertfast import dispatch
from bertfast.models import engine
from bertfast.ops import _graphs, encoder
from gpu_code import cuda_driver

MODEL = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
}


@contextlib.contextmanager
def card(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[cuda_driver.Device]:
    """What executes kernels is a dispatch mode, under which neither models nor layers would run as they do."""
    monkeypatch.setattr(encoder, "through_library", lambda: False)
    monkeypatch.setattr(engine, "_reason_of_moment", lambda: None)
    options = getattr(request, "param", {})
    with cuda_driver.emulated(**options) as device, dispatch.use_backend("cuda"):
        yield device
    assert cuda_driver.runtime().fake_cudart_graphs() == 0


def poison(device: cuda_driver.Device) -> None:
    """Makes the arenas NaN and unwritten, but for what a backward is to read."""
    for arena in _graphs.arenas():
        if arena.in_use():
            continue
        with _disable_current_modes():
            device.memory.note_allocated(arena.memory)
        arena.memory.numpy()[:] = 255  # NaN in every dtype
