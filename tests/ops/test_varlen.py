"""The backend `triton:torch` of attention: a stand-in for torch's kernel of packed sequences, before Triton's backward.

No kernel of torch's was run: what it takes and gives is read from its signature and documentation.
"""

from __future__ import annotations

import pytest
import torch

import harness
from bertfast import dispatch, ops
from bertfast.dispatch import decisions
from bertfast.dispatch.calls import key_of
from bertfast.ops import _varlen
from gpu_code.backends import running
from harness import Case

varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has no varlen_attn")
pytest.importorskip("triton")

ATTENTION, NAME = "attention", _varlen.NAME
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CASES = [
    Case("ragged", (17, 0, 5, 40), outer=64, heads=2),
    Case("longer", (130, 3), outer=48, heads=3),
    Case("sharp", (33, 17), outer=128, heads=2, variant="sharp"),
]


class StandIn:
    """torch's function on the CPU; rows of no sequence are NaN, as memory nobody wrote might be."""

    def __init__(self, tokens_first: bool = False):
        self.tokens_first, self.calls = tokens_first, 0

    def __call__(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None
    ):
        assert cu_seq_q is cu_seq_k
        assert cu_seq_q.dtype == torch.int32
        assert cu_seq_q.is_contiguous()
        assert max_q == max_k >= int(cu_seq_q.diff().max())
        self.calls += 1
        tokens, heads, _ = query.shape
        out, lse = torch.full_like(query, torch.nan), torch.full((heads, tokens), torch.nan)
        for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
            q, k, v = (t[start:stop].float().transpose(0, 1) for t in (query, key, value))
            logits = q @ k.transpose(1, 2) * scale
            lse[:, start:stop] = logits.logsumexp(2)
            probabilities = logits.softmax(2).to(query.dtype).float()
            out[start:stop] = (probabilities @ v).transpose(0, 1).to(query.dtype)
        if self.tokens_first:
            lse = lse.t()
        return (out, lse) if return_aux is not None and return_aux.lse else out


@pytest.fixture
def torchs(monkeypatch):
    found = StandIn()
    monkeypatch.setattr(varlen, "varlen_attn", found)
    _varlen._absent.cache_clear()
    yield found
    _varlen._absent.cache_clear()


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_parity(torchs, case, dtype, tokens_first):
    """However torch lays lse out."""
    torchs.tokens_first = tokens_first
    harness.expect(ATTENTION, case, dtype, False)
    with running(NAME):
        harness.check_forward(ATTENTION, case, dtype, NAME)
        harness.check_backward(ATTENTION, case, dtype, NAME)
    assert torchs.calls > 2


@pytest.mark.parametrize("grad", [False, True])
def test_rows_of_no_sequence(torchs, grad):
    """Are zeros, with and without lse; the others as without them."""
    inputs = harness.make_inputs(ATTENTION, CASES[0], torch.bfloat16)
    spare = torch.cat((inputs["qkv"], torch.full_like(inputs["qkv"][:9], torch.nan)))
    with running(NAME), dispatch.use_backend(NAME):
        expected = ops.attention(**inputs)
        spare.requires_grad_(grad)
        found = ops.attention(**{**inputs, "qkv": spare})
        assert torch.equal(found[:62], expected)
        assert not found[62:].any()
        if grad:
            (gradient,) = torch.autograd.grad(found, spare, torch.ones_like(found))
            assert not gradient[62:].any()
            assert gradient[:62].isfinite().all()
    assert torchs.calls == 2


def _refusals(case, dtype=torch.bfloat16, **options):
    call = harness.arguments(ATTENTION, "forward", case, dtype, save=True)
    return dispatch.reasons(call)[NAME]


def test_refuses(torchs, monkeypatch):
    """As a choice of a table; asked for by name Triton's own kernel runs."""
    refused = {
        "torch's attention has other dropout": Case("", (17,), outer=32, heads=2, p=0.1),
        "head size 12; torch's attention takes multiples of 8": Case("", (17,), outer=24, heads=2),
        "2 tokens and as many heads": Case("", (2,), outer=32, heads=2),
    }
    with running(NAME):
        for reason, case in refused.items():
            assert _refusals(case).startswith(reason)
            with dispatch.use_backend(NAME):
                assert _refusals(case) is None
                harness.check_forward(ATTENTION, case, torch.bfloat16, NAME)
        assert "computes in 16 bits" in _refusals(CASES[0], torch.float32)
        strided = Case("", (17,), outer=32, heads=2, strided=True)
        assert _refusals(strided) == "qkv: its heads do not begin at multiples of 16 bytes"
        with dispatch.batch_invariant():
            assert "depends on the batch" in _refusals(CASES[0])
        assert _refusals(CASES[0]) is None
        backward = harness.arguments(ATTENTION, "backward", CASES[0], torch.bfloat16)
        assert dispatch.reasons(backward)[NAME] == "backward is triton's own"
        monkeypatch.setattr(varlen, "varlen_attn", lambda query, key: None)
        _varlen._absent.cache_clear()
        assert _refusals(CASES[0]).endswith("has none with a scale")
        monkeypatch.delattr(varlen, "varlen_attn")
        _varlen._absent.cache_clear()
        assert _refusals(CASES[0]).endswith("has no attention of packed sequences")
    assert not torchs.calls


def test_a_table_chooses_it(torchs):
    line = {"backend": NAME, "microseconds": {NAME: 1.0, "triton": 2.0}, "rejected": {}}
    with running(NAME):
        call = harness.arguments(ATTENTION, "forward", CASES[0], torch.bfloat16, save=True)
        try:
            decisions.take_from_run({key_of(call).text(): line})
            assert dispatch.chosen_on_gpu(call) == NAME
        finally:
            decisions.take_from_run(None)
