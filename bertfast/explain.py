"""Which backend every operation takes for a given batch, and why the others do not."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import dispatch
from ._table import table

_COLUMNS = ("operation", "direction", "backend", "calls", "why not the others")


def explain(model: nn.Module, batch: Mapping[str, Any]) -> str:
    """Run the model on the batch once and tell what ran: a table of operation, direction, backend, calls and reasons.

    A model in train mode also runs backward (of the sum of its first output). Gradients, dropout's random state and
    the model are left as they were. A module that is called in the place of a fused operation (LoRA) has a row, and
    so has a model that runs transformers' own forward, with the reason.

    Args:
        model: a model of bertfast, or a module that holds one.
        batch: the keyword arguments of its forward.

    Raises:
        What the model raises for the batch.
    """
    gradients = torch.enable_grad() if model.training else contextlib.nullcontext()
    with _as_it_was(model), gradients, dispatch.record() as log:
        output = model(**batch)
        if model.training:
            _backward(model, output)
    return report(log)


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Puts back what a forward changes, also where it raises: random state, buffers, and configurations (the first
    labels decide config.problem_type)."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    found = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in found if hasattr(config, "__dict__")}
    fields = [(config, dict(vars(config))) for config in configs.values()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for config, values in fields:
            vars(config).clear()
            vars(config).update(values)
        with torch.no_grad():
            for buffer, values in buffers:
                # BatchNorm changes its own past the version counter
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def report(log: Sequence[dispatch.Choice]) -> str:
    """What `dispatch.record` wrote down as a table, equal lines counted."""
    rows = ((c.operation, c.direction, c.backend or "none", _reasons(c.reasons)) for c in log)
    counts = Counter(rows)
    return table([_COLUMNS, *((*key[:3], count, key[3]) for key, count in counts.items())])


def _backward(model: nn.Module, output: Any) -> None:
    values = output.values() if isinstance(output, Mapping) else output
    first = next(value for value in values if isinstance(value, Tensor))
    wanted = [p for p in model.parameters() if p.requires_grad]
    if first.requires_grad and wanted:
        torch.autograd.grad(first.float().sum(), wanted, allow_unused=True)


def _reasons(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
