"""torch.autocast in bf16 on the CPU: as near to fp32 as transformers is under the same autocast."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="transformers, the peer, is not installed"
)


def run(model, batch, enabled):
    """(last_hidden_state, gradients) of one forward and backward."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        hidden = model(**batch).last_hidden_state
    direction = torch.linspace(-1, 1, hidden.shape[-1])
    (hidden.float()[:, 0] @ direction).sum().backward()
    return hidden.detach().float(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_autocast_errs_no_more_than_transformers_does(pair, activation):
    theirs, ours = pair(hidden_act=activation)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    batch = {"input_ids": torch.randint(1, 90, mask.shape) * mask, "attention_mask": mask}
    real = mask[..., None]
    truth, gradients = run(ours, batch, enabled=False)
    got, got_gradients = run(ours, batch, enabled=True)
    peer, peer_gradients = run(theirs, batch, enabled=True)
    assert ((got - truth) * real).abs().max() <= 2 * ((peer - truth) * real).abs().max()
    assert got.ne(truth).any()  # it did run in bf16
    for name, gradient in gradients.items():
        assert got_gradients[name].dtype == torch.float32
        # A key's bias moves all logits of a query alike: its gradient is 0 but for rounding. So the query's tells.
        size = gradients[name.replace("key.bias", "query.bias")].norm()
        limit = 3 * (peer_gradients[name] - gradient).norm() + 0.02 * size
        assert (got_gradients[name] - gradient).norm() <= limit, name


def test_a_frozen_model_runs_under_autocast(ours):
    model = ours().eval()
    batch = {"input_ids": torch.randint(1, 90, (2, 6))}
    truth = model(**batch).last_hidden_state
    model.prepack()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            model(**batch).last_hidden_state.float(), truth, atol=0.1, rtol=0.1
        )
