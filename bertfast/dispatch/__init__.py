"""Which backend computes an operation. Nothing is measured here, and nothing depends on time, load or neighbours.

A backend has `forward`, `backward` and `supports(call) -> None | reason`. One asked for by name, with `use_backend` or
the environment variable `BERTFAST_BACKEND`, runs or raises. The automatic choice: on a CPU `cpu`; on a GPU what a
tuning table says (`bertfast tune` writes one), else the shipped table; the next in order where one refuses. The choice
is the same during CUDA graph capture and under torch.compile. All choices can be recorded with the reasons of those
that did not run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .._scope import GRAPH_TOKENS, Log, Scope, held, scope
from ..errors import ArgumentError, UnsupportedError
from . import decisions
from .backends import NAMES, Backend, order, product_of

TRAINING = "training"  # what `graphs` takes
_BACKENDS: dict[str, Mapping[str, Backend]] = {}


class Choice(NamedTuple):
    """One decision: the backend that ran (None: none did) and why those before it did not."""

    operation: str
    direction: str
    backend: str | None
    reasons: dict[str, str]


def register(operation: str, backends: Mapping[str, Backend]) -> None:
    """Announce the backends of `operation` by name."""
    _BACKENDS[operation] = backends


def operations() -> tuple[str, ...]:
    """The names of the operations, in the order of their registration."""
    return tuple(_BACKENDS)


def backends_of(operation: str) -> Mapping[str, Backend]:
    """The backends of an operation by name; one that cannot be imported refuses every call, with the reason."""
    return _BACKENDS[operation]


def backend() -> str:
    """The backend in force: of the innermost `use_backend`, else of `BERTFAST_BACKEND` (read once), else "auto"."""
    return scope().backend or _environment()


@functools.cache
def _environment() -> str:
    return _valid(os.environ.get("BERTFAST_BACKEND") or "auto", "BERTFAST_BACKEND")


def _valid(name: str, argument: str) -> str:
    if name not in ("auto", *NAMES):
        raise ArgumentError(argument, "one of " + ", ".join(("auto", *NAMES)), repr(name))
    return name


def use_backend(name: str) -> contextlib.AbstractContextManager[None]:
    """Run every operation in the backend `name`, or choose freely ("auto"), inside the block.

    Backends: "cpu" (C++), "cuda" (CUDA C++), "cuda:cublaslt" (its kernels around cuBLASLt's products), "triton",
    "triton:torch" (Triton's kernels around torch's own products, and torch's attention of packed sequences where it
    has one, before Triton's backward), "eager" (plain torch in the tensors' own dtype),
    "reference" (the definition, in plain torch with sums in fp32).
    Holds for the calling thread or task, and for the backward of what it computes. Raises ArgumentError for an unknown
    name; an operation that the named backend cannot compute raises UnsupportedError with the reason.
    """
    return held(scope()._replace(backend=_valid(name, "name")))


def batch_invariant() -> contextlib.AbstractContextManager[None]:
    """Inside the block a row's bits depend on the row alone, not on the batch that it is in.

    On a CPU they always do. On a GPU one backend and one way of cutting its sums serve all sizes of a batch, which may
    take longer. Holds as `use_backend` does.
    """
    return held(scope()._replace(invariant=True))


def graphs(enabled: bool | str) -> contextlib.AbstractContextManager[None]:
    """Whether all layers' launches on a GPU may leave as one CUDA graph inside the block; elsewhere they may.

    One is recorded of a call without a gradient and without dropout, of at most 8192 tokens or places, when the same
    layers get a padded batch of the same shape, whatever its mask, on the same stream the second time (of packed tokens
    as many, in as many sequences), and replayed from then on, with the same bits. The 16 used last are kept. "training"
    has calls with a gradient recorded too, forward and backward, with fresh dropout at each replay; what one of them
    saves for its backward, and all its gradients, have memory that stays (`bertfast info` in the process tells how
    much). Holds for the calling thread or task. Raises ArgumentError.
    """
    if enabled not in (True, False, TRAINING):
        raise ArgumentError("enabled", f"True, False or {TRAINING!r}", repr(enabled))
    most, trains = GRAPH_TOKENS if enabled else 0, enabled == TRAINING
    return held(scope()._replace(graph_tokens=most, training_graphs=trains))


def graphs_in_training() -> contextlib.AbstractContextManager[None]:
    """As `graphs("training")`, where graphs are not off."""
    return held(scope()._replace(training_graphs=True))


def graphs_of_any_size() -> contextlib.AbstractContextManager[None]:
    """Inside the block a CUDA graph is recorded however many tokens a call has."""
    return held(scope()._replace(graph_tokens=sys.maxsize))


def is_batch_invariant() -> bool:
    """Whether the block of a `batch_invariant` is open here."""
    return scope().invariant


def product() -> str:
    """The matrix product that the backend which runs now has to take; empty: its own."""
    return scope().product


def labelled(label: str) -> contextlib.AbstractContextManager[None]:
    """Let records of what runs in the block, and of its backward, say `label` in the place of the operation's name."""
    return held(scope()._replace(label=label))


@contextlib.contextmanager
def record() -> Iterator[list[Choice]]:
    """Collect a `Choice` for every operation that runs in the block, in order."""
    log = Log()
    here = scope()
    try:
        with held(here._replace(logs=(*here.logs, log))):
            yield log
    finally:
        log.open = False


@contextlib.contextmanager
def inside(outer: Scope) -> Iterator[None]:
    """Let hold what held where `outer` was taken, unless the block says otherwise; its records only while open.

    Autograd runs backward in a thread of its own on GPUs, which sees none of the forward's context.
    """
    here = scope()
    logs = (log for log in outer.logs if log.open and not any(log is own for own in here.logs))
    named = here.backend or outer.backend
    invariant, label = here.invariant or outer.invariant, here.label or outer.label
    with held(Scope(named, invariant, label=label, logs=(*here.logs, *logs))):
        yield


def reasons(call: Any) -> dict[str, str | None]:
    """What each backend says to a call: None where it would run, else why not."""
    found = _BACKENDS[call.operation]
    return {name: backend.supports(call) for name, backend in found.items()}


def run(call: Any) -> Any:
    """Compute a call, and give what its backend gives. Raises UnsupportedError as `choose`."""
    name, found = choose(call)
    compute = getattr(found, call.direction)
    if not product_of(name):
        return compute(*call)
    with held(scope()._replace(product=product_of(name))):
        return compute(*call)


def choose(call: Any) -> tuple[str, Backend]:
    """The backend that computes a call, and its name.

    Args:
        call: the arguments as a named tuple of the operation's contract, which knows operation, direction and lead.

    Raises UnsupportedError if the backend asked for by name, or every one, refuses.
    """
    here = scope()
    name = here.backend or _environment()
    if name != "auto":
        return _first((name,), {}, call)
    device_type = call.lead.device.type
    if device_type != "cuda" or here.invariant:
        return _first(order(device_type), {}, call)
    known, names = decisions.on_gpu(call)
    if known is None:
        return _first(names, {}, call)
    rejected = {name: f"rejected: {reason}" for name, reason in known.rejected.items()}
    slower = {
        name: f"measured {seconds * 1e6:.0f} us, {known.backend} {known.seconds[known.backend] * 1e6:.0f} us"
        for name, seconds in known.seconds.items()
        if name != known.backend
    }
    return _first(names, rejected, call, slower)


def chosen_on_gpu(call: Any) -> str | None:
    """The backend that the automatic choice takes for a call on a GPU, None where all refuse; nothing is recorded."""
    known, names = decisions.on_gpu(call)
    found, rejected = _BACKENDS[call.operation], known.rejected if known else {}
    fitting = (name for name in names if name in found and name not in rejected)
    return next((name for name in fitting if found[name].supports(call) is None), None)


def _first(
    names: tuple[str, ...], rejected: Mapping[str, str], call: Any, slower: Mapping[str, str] = {}
) -> tuple[str, Backend]:
    """The first of the named backends that neither refuses nor was rejected.

    slower: what is told of those that a measurement passed over, where its winner runs.
    """
    found = _BACKENDS[call.operation]
    refused: dict[str, str] = {}
    for name in names:
        reason = rejected.get(name)
        if reason is None and name in found:
            reason = found[name].supports(call)
            if reason is None:
                here = scope()
                if here.logs:
                    passed_over = {**rejected, **slower, **refused}
                    note(here.label or call.operation, call.direction, name, passed_over)
                return name, found[name]
        refused[name] = reason or "not there"
    note(call.operation, call.direction, None, refused)
    why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    by_name = backend() != "auto"
    advice = ' Take use_backend("auto") to let another backend run.' if by_name else ""
    raise UnsupportedError(f"{call.operation}, {call.direction}: {why}.{advice}")


def note(operation: str, direction: str, name: str | None, refused: Mapping[str, str]) -> None:
    """Write a decision into every open record; also for code that takes another path than the operations."""
    for log in scope().logs:
        log.append(Choice(operation, direction, name, dict(refused)))
