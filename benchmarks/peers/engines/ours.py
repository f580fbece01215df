"""bertfast's BertModel."""

from __future__ import annotations

import torch

from . import Job, sdpa


class Engine(sdpa.Engine):
    """Options: prepack (False); quantize, "int8" (None)."""

    def __init__(self, job: Job):
        from bertfast import BertModel

        self.job = job
        torch.set_num_threads(job.threads)
        self.model = BertModel.from_pretrained(job.model, add_pooling_layer=False).eval()
        if job.options.get("prepack"):
            self.model.prepack()
        if job.options.get("quantize"):
            self.model.quantize(job.options["quantize"])
