"""`capture()` and the attribute `graphs`: CUDA graphs of a model's calls, recorded beforehand, or not at all."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .. import dispatch
from ..errors import ArgumentError, UnsupportedError
from ..ops._graphs import KEPT

AUTO = "auto"


class Capturable:
    """Mixin of the models."""

    _graphs: str | bool = AUTO

    @property
    def graphs(self) -> str | bool:
        """ "auto"; "training": also of calls with a gradient; or False: no CUDA graph is recorded or replayed."""
        return self._graphs

    @graphs.setter
    def graphs(self, graphs: str | bool) -> None:
        if graphs not in (AUTO, dispatch.TRAINING) and graphs is not False:
            raise ArgumentError("graphs", "'auto', 'training' or False", repr(graphs))
        self._graphs = graphs

    def capture(self, shapes: Iterable[Sequence[int]]) -> None:
        """Record the CUDA graphs that calls of these shapes replay on the current stream, whatever their mask.

        Unasked that happens at the second call of a shape, of at most 8192 places (`bertfast.graphs`). Runs the model
        twice for each shape, without position_ids, with which a call is another. Of heads that score every word a graph
        serves calls with as many real tokens.

        Args:
            shapes: of input_ids, as in (batch, length); the 16 used last are kept.

        Raises:
            ArgumentError: a shape is none of this model's, or there are too many.
            UnsupportedError: no graph is recorded (train mode, a CPU, another backend than cuda, hooks); says why.
        """
        shapes = [tuple(shape) for shape in shapes]
        if len(shapes) > KEPT:
            raise ArgumentError("shapes", f"at most {KEPT}, as no more are kept", str(len(shapes)))
        if self.training:
            raise UnsupportedError("capture: the model is in train mode. Call eval() first.")
        for shape in sorted(shapes, key=math.prod, reverse=True):  # the arena does not grow
            ids = torch.zeros(shape, dtype=torch.int64, device=self.device)
            with torch.no_grad(), dispatch.graphs_of_any_size(), dispatch.record() as log:
                self(ids)
                self(ids)
            if not any(choice.direction == "graph" and choice.backend for choice in log):
                raise UnsupportedError(f"capture: {list(shape)} is not recorded: {_why(log)}.")


def allowed(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Lets what runs in the block be as the model's attribute says."""
    if model.graphs != AUTO and not torch.compiler.is_compiling():
        return dispatch.graphs_in_training() if model.graphs else dispatch.graphs(False)
    return contextlib.nullcontext()


def _why(log: list[dispatch.Choice]) -> str:
    for choice in reversed(log):
        reasons = [f"{name}: {reason}" for name, reason in choice.reasons.items()]
        if reasons and (choice.backend is None or choice.operation not in dispatch.operations()):
            return "; ".join(reasons)
    if any(choice.operation == "encoder" and choice.backend == "cuda" for choice in log):
        return "graphs are off"
    return "the layers do not run in one call of the backend cuda"
