"""transformers' BertModel with torch's fused attention."""

from __future__ import annotations

import numpy as np
import torch

from . import Base, Job


class Engine(Base):
    """Options: attention ("sdpa"), dtype ("float32")."""

    def __init__(self, job: Job):
        super().__init__(job)
        torch.set_num_threads(job.threads)
        self.model = load(job)

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """A mask is given where there is padding."""
        padded = not batch["attention_mask"].all()
        names = ("input_ids", "attention_mask") if padded else ("input_ids",)
        return {name: torch.from_numpy(batch[name]) for name in names}

    @torch.no_grad()
    def forward(self, prepared: dict[str, torch.Tensor]) -> np.ndarray:
        return self.model(**prepared).last_hidden_state.numpy()


def load(job: Job) -> torch.nn.Module:
    """transformers' model without its pooler, in eval mode."""
    from transformers import BertModel

    model = BertModel.from_pretrained(
        job.model,
        add_pooling_layer=False,
        attn_implementation=job.options.get("attention", "sdpa"),
        dtype=getattr(torch, job.options.get("dtype", "float32")),
    )
    return model.eval()
