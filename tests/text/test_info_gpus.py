"""What `bertfast info` says of the CUDA kernels and of the GPUs of a machine, here described by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bertfast import extension
from bertfast.cli.info import cuda_kernels, gpus


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine: (driver's CUDA, targets of the kernels, compute capabilities of its GPUs)."""

    def make(driver: int, targets: str = "80,90+PTX", cards: tuple = (), toolkit: int = 13000):
        kernels = SimpleNamespace(
            targets=lambda: targets, toolkit_version=lambda: toolkit, driver_version=lambda: driver
        )
        extension.driver_refuses.cache_clear()
        extension._card_refuses.cache_clear()
        monkeypatch.setattr(extension, "cuda", kernels)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: cards[number(card)])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")

    def number(card: int | torch.device) -> int:
        return card.index if isinstance(card, torch.device) else card

    yield make
    extension.driver_refuses.cache_clear()
    extension._card_refuses.cache_clear()


@pytest.mark.parametrize(
    ("targets", "capability", "words"),
    [
        ("80,86,90+PTX", (8, 0), "runs code of sm_80"),
        ("80,86,90+PTX", (8, 9), "runs code of sm_86"),
        ("80,86,90", (9, 0), "runs code of sm_90"),
        ("80,86,100,120", (10, 3), "runs code of sm_100"),
        ("80,86,90+PTX", (12, 0), "runs PTX, which the driver compiles at the first call"),
        ("86+PTX", (8, 0), "runs PTX, which the driver compiles at the first call"),
        ("80,86,90", (12, 0), "not covered: build with BERTFAST_CUDA_ARCHS=120"),
        ("86", (8, 0), "not covered: build with BERTFAST_CUDA_ARCHS=80"),
        ("80+PTX", (7, 5), "not covered: the kernels need sm_80 or newer"),
    ],
)
def test_coverage(targets, capability, words):
    assert extension.coverage(targets, capability) == words


def test_what_the_kernels_were_compiled_for(machine):
    machine(13000)
    assert cuda_kernels() == "sm_80, sm_90, PTX for others; CUDA 13.0"
    machine(13000, "80,90")
    assert cuda_kernels() == "sm_80, sm_90; CUDA 13.0"


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(extension, "cuda", None)
    monkeypatch.setattr(extension, "CUDA_REASON", "CUDA kernels not built: a reason")
    assert cuda_kernels() == "CUDA kernels not built: a reason"
    assert list(gpus()) == []


def test_each_gpu_is_told(machine):
    machine(13000, cards=((8, 6), (12, 0)))
    assert list(gpus()) == [
        "Card 0 (sm_86): runs code of sm_80",
        "Card 1 (sm_120): runs PTX, which the driver compiles at the first call",
    ]
    machine(13000)
    assert list(gpus()) == ["the driver serves the kernels; torch sees no GPU"]
    machine(12080, cards=((8, 6),))
    (line,) = gpus()
    assert line == "the driver serves CUDA 12.8, the kernels need 13.0 (driver 580 or newer)"


def test_a_toolkit_of_cuda_12(machine):
    machine(12040, toolkit=12080)
    assert extension.driver_refuses() is None
    machine(12030, toolkit=12080)
    assert (
        extension.driver_refuses()
        == "the driver serves CUDA 12.3, the kernels need 12.4 (driver 550 or newer)"
    )


def test_a_card_without_code_is_refused(machine):
    like = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)
    machine(13000, "80,90", cards=((9, 0),))
    assert extension.refuses_cuda(like) is None
    machine(13000, "80,90", cards=((12, 0),))
    words = "sm_120 is not covered: build with BERTFAST_CUDA_ARCHS=120"
    assert extension.refuses_cuda(like) == words
    machine(13000, "80,90+PTX", cards=((7, 5),))
    words = "sm_75 is not covered: the kernels need sm_80 or newer"
    assert extension.refuses_cuda(like) == words
