"""Every instruction set that runs here, forced in turn, gives right results."""

from __future__ import annotations

import pytest
import torch

from bertfast import extension
from bertfast.errors import UnsupportedError
from bertfast.ops import _weights
from harness import CASES, OPERATIONS, check_backward, check_forward, refusal

VARIANTS = extension.cpu.variants() if extension.cpu else []


@pytest.fixture
def force():
    before = extension.cpu.variant()
    yield extension.cpu.set_variant
    extension.cpu.set_variant(before)


ALL = [pytest.param(name, case, id=f"{name}-{case}") for name in OPERATIONS for case in CASES[name]]


@pytest.mark.parametrize(("operation", "case"), ALL)
def test_parity(operation, case, force):
    """Forward in every dtype, gradients in float32; what is expected is computed once for all sets."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for variant in VARIANTS:
            force(variant)
            try:
                check_forward(operation, case, dtype, "cpu")
                if dtype == torch.float32 and not refusal(
                    operation, "backward", case, dtype, "cpu"
                ):
                    check_backward(operation, case, dtype, "cpu")
            except AssertionError as error:
                raise AssertionError(f"{variant}: {error}") from None


@pytest.mark.parametrize("variant", VARIANTS)
def test_packing_is_exact(variant, force):
    force(variant)
    for n, k, dtype in ((1, 1, torch.float32), (33, 7, torch.bfloat16), (70, 33, torch.float16)):
        weight = torch.randn(n, k + 3).to(dtype)[:, :k]  # rows of a wider matrix
        assert torch.equal(_weights.pack(weight).unpack(), weight)


def test_the_widest_set_is_chosen_and_the_test_variant_never():
    assert extension.cpu.variant() == [name for name in VARIANTS if name != "avx2_wide"][-1]


def test_an_unknown_set_is_refused():
    before = extension.cpu.variant()
    with pytest.raises(ValueError, match="no such variant"):
        extension.cpu.set_variant("sse9")
    assert extension.cpu.variant() == before


@pytest.mark.skipif(len(VARIANTS) < 2, reason="one instruction set on this processor")
def test_a_weight_packed_for_another_set_is_refused(force):
    force(VARIANTS[0])
    kept = _weights.pack(torch.randn(20, 10))
    force(VARIANTS[1])
    with pytest.raises(UnsupportedError, match=VARIANTS[0]):
        kept.unpack()
