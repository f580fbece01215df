"""transformers' BertModel under torch.compile, with inductor's freezing."""

from __future__ import annotations

import torch
from torch._inductor import config

from . import Job, sdpa


class Engine(sdpa.Engine):
    """Fixed shapes are compiled for that shape, as in a loop over one; varying ones as dynamic, once."""

    def __init__(self, job: Job):
        config.freezing = True
        super().__init__(job)
        self.plain = self.model

    def begin(self, varying: bool) -> None:
        torch.compiler.reset()
        self.model = torch.compile(self.plain, dynamic=varying)
