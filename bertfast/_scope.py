"""What holds for a piece of code: the thread or task, and the backward of what it computes."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple


class Log(list):
    """The choices of one `dispatch.record()`, which ends with its block, whoever still holds the list."""

    open = True


GRAPH_TOKENS = 8192  # beyond, launching takes less time than the kernels run


class Scope(NamedTuple):
    """What holds.

    Fields:
        backend: asked for by name. invariant: as `dispatch.batch_invariant`. product: see `dispatch.product`.
        label: see `dispatch.labelled`. logs: who records.
        graph_tokens: the most tokens of a call for which a CUDA graph is recorded; 0: none is replayed either.
        training_graphs: whether one is of calls with a gradient, too.
    """

    backend: str | None = None
    invariant: bool = False
    product: str = ""
    label: str = ""
    logs: tuple[Log, ...] = ()
    graph_tokens: int = GRAPH_TOKENS
    training_graphs: bool = False


_NOTHING = Scope()
_SCOPE: contextvars.ContextVar[Scope] = contextvars.ContextVar("bertfast_scope", default=_NOTHING)


def scope() -> Scope:
    """What holds here, for `dispatch.inside` elsewhere."""
    return _SCOPE.get()


@contextlib.contextmanager
def held(scope: Scope) -> Iterator[None]:
    """Let it hold inside the block."""
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)
