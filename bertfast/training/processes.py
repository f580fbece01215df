"""The processes of a run: one, or those that torchrun starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..inference.devices import default_device


class Processes:
    """Which process this is, and what all do together; alone it costs nothing.

    Attributes:
        rank: of this process, from 0. count: of processes. device: where this one computes.
    """

    def __init__(self, device: str | torch.device | None = None):
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self.device = torch.device(device or default_device())
        self._began = False
        if self.device.type == "cuda" and (self.count > 1 or self.device.index is None):
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            if not dist.is_available():
                raise UnsupportedError("several processes need a torch with torch.distributed.")
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self._began = True

    @property
    def first(self) -> bool:
        """Whether this process writes files and tells what happens."""
        return self.rank == 0

    def close(self) -> None:
        if self._began:
            dist.destroy_process_group()

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each process has, objects that fit into memory."""
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, value)
        return held

    def of_first(self, value: Any) -> Any:
        """What the first process has, a small object."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, device=self._for_objects())
        return held[0]

    def wrap(self, model: nn.Module, sharding: str) -> nn.Module:
        """The model, computing with the other processes: torch's DDP, or FSDP2 with BERT's layer as its unit."""
        if self.count == 1:
            return model
        if sharding == "ddp":
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        from torch.distributed.fsdp import fully_shard

        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        return fully_shard(model)

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Gradients of all but the last micro-batch of a step stay where they are."""
        if self.count == 1:
            yield
        elif hasattr(model, "no_sync"):
            with contextlib.nullcontext() if last else model.no_sync():
                yield
        else:
            model.set_requires_gradient_sync(last)
            yield

    def _for_objects(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")
