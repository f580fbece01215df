"""How far the logits of a trained checkpoint lie from those that transformers computes from it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

from bertfast.models.pretraining import load_pretrained

LENGTHS = (128, 60, 17, 5)
FIRST = 5  # behind the special tokens


@torch.no_grad()
def compare(model: Path, report: Path) -> None:
    """Adds to the JSON the largest logit and the largest difference, over real tokens of a padded batch."""
    ours = load_pretrained(model)
    theirs = getattr(transformers, type(ours).__name__).from_pretrained(model).eval()
    assert type(ours) is not type(theirs)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        FIRST, ours.config.vocab_size, (len(LENGTHS), LENGTHS[0]), generator=generator
    )
    mask = (torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS)[:, None]).long()
    found, expected = (m(ids, attention_mask=mask)[0][mask.bool()] for m in (ours, theirs))
    values = {
        "largest": expected.abs().max().item(),
        "largest difference from transformers'": (found - expected).abs().max().item(),
    }
    print("logits:", values, flush=True)
    report.write_text(json.dumps({**json.loads(report.read_text()), "logits": values}, indent=1))
