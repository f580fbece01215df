"""torch.autocast in bf16 on the CPU: as near to fp32 as transformers is under the same autocast."""

from __future__ import annotations

import pytest
import torch

from harness import near
from models.ecosystem import in_float64

transformers = pytest.importorskip(
    "transformers", reason="transformers, the peer, is not installed"
)


def run(model, batch, enabled):
    """(last_hidden_state, gradients) of one forward and backward."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        hidden = model(**batch).last_hidden_state
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    direction = torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype)
    (hidden[:, 0] @ direction).sum().backward()
    return hidden.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_autocast_errs_no_more_than_transformers_does(pair, activation):
    theirs, ours = pair(hidden_act=activation)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    batch = {"input_ids": torch.randint(1, 90, mask.shape) * mask, "attention_mask": mask}
    exact, plain = run(in_float64(theirs), batch, False), run(ours, batch, False)
    got, eager = run(ours, batch, True), run(theirs, batch, True)
    assert all(gradient.dtype == torch.float32 for gradient in got[1].values())
    assert got[0].ne(plain[0]).any()  # it did run in bf16
    found = ((states[mask.bool()], gradients) for states, gradients in (got, exact, eager))
    near("states and gradients", *found, rounded=torch.bfloat16)


def test_a_prepacked_model_runs_under_autocast(pair):
    theirs, model = pair()
    batch = {"input_ids": torch.randint(1, 90, (2, 6))}
    exact = in_float64(theirs)(**batch)
    model.prepack()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near("output", model(**batch), exact, theirs(**batch), rounded=torch.bfloat16)
