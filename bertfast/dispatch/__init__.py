"""Which form of an operation runs.

A form has `forward`, `backward` and `supports(direction, *args) -> None | reason`. One asked for by name, with
`use_backend` or the environment variable `BERTFAST_BACKEND`, runs or raises. The automatic choice takes the form that
was measured to be the fastest for calls like this one (`measured`), and first measures where that is not known. Where
nothing is measured, the fixed order holds: the first form in it that supports the arguments. That is so

- inside `fixed_order()`, and after `set_measuring(False)`;
- while torch.use_deterministic_algorithms is on, a CUDA graph is captured, or torch.compile traces;
- for float64, frozen weights, and devices other than CPUs and CUDA GPUs.

A form that was struck off (it differed from torch, or raised) is passed over in the fixed order too, except after
`set_measuring(False)`. All decisions can be recorded with the reasons of the forms that did not run.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from ..errors import ArgumentError, UnsupportedError
from . import forms, measured
from .forms import NAMES, Form, Forms
from .keys import depends_on, device_type, names
from .measured import is_measuring, measuring, set_measuring, tuning
from .table import Decision

__all__ = [
    "NAMES",
    "ORDER",
    "Choice",
    "Decision",
    "Scope",
    "backend",
    "choose",
    "depends_on",
    "fixed_order",
    "inside",
    "is_measuring",
    "measuring",
    "names",
    "note",
    "operations",
    "reasons",
    "record",
    "register",
    "scope",
    "set_measuring",
    "tuning",
    "use_backend",
]

ORDER = ("cpu", "cuda", "triton", "reference")  # the forms with a file of their own, best first
_FORMS: dict[str, Mapping[str, Form]] = {}


class Choice(NamedTuple):
    """One decision: the form that ran (None: none did) and why the forms before it did not."""

    operation: str
    direction: str
    form: str | None
    reasons: dict[str, str]


class _Log(list):
    """The choices of one `record()`, which ends with its block, whoever still holds the list."""

    open = True


class Scope(NamedTuple):
    """What holds for a piece of code: the backend asked for by name, the fixed order, and who records."""

    backend: str | None = None
    fixed: bool = False
    logs: tuple[_Log, ...] = ()


_NOTHING = Scope()
_SCOPE: contextvars.ContextVar[Scope] = contextvars.ContextVar("bertfast_scope", default=_NOTHING)


def register(operation: str, package: str) -> None:
    """Announce the forms of `operation`, the modules of its package."""
    _FORMS[operation] = Forms(package)


def operations() -> tuple[str, ...]:
    """The names of the operations, in the order of their registration."""
    return tuple(_FORMS)


def backend() -> str:
    """The backend in force: that of the innermost `use_backend`, else of `BERTFAST_BACKEND` (read once), else
    "auto".
    """
    return _SCOPE.get().backend or _environment()


@functools.cache
def _environment() -> str:
    return _valid(os.environ.get("BERTFAST_BACKEND") or "auto", "BERTFAST_BACKEND")


def _valid(name: str, argument: str) -> str:
    if name not in ("auto", *NAMES):
        raise ArgumentError(argument, "one of " + ", ".join(("auto", *NAMES)), repr(name))
    return name


@contextlib.contextmanager
def _held(scope: Scope) -> Iterator[None]:
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def use_backend(name: str) -> contextlib.AbstractContextManager[None]:
    """Run every operation in the form `name`, or choose freely ("auto"), inside the block.

    Forms: "cpu" (C++), "cuda" (CUDA C++), "triton", "triton_matmul" (Triton's kernels around torch's own products),
    "torch" (plain torch in the tensors' own dtype), "reference" (the definition, in plain torch with sums in fp32).
    Holds for the calling thread or task, and for the backward of what it computes. Raises ArgumentError for an unknown
    name; an operation that the named form cannot compute raises UnsupportedError with the reason.
    """
    return _held(_SCOPE.get()._replace(backend=_valid(name, "name")))


def fixed_order() -> contextlib.AbstractContextManager[None]:
    """Measure nothing and use no measured times inside the block: one form for all sizes of input.

    For results that do not depend on what a machine measured, and around the warm-up before a CUDA graph is captured:
    the capture keeps to the fixed order. Holds as `use_backend` does.
    """
    return _held(_SCOPE.get()._replace(fixed=True))


@contextlib.contextmanager
def record() -> Iterator[list[Choice]]:
    """Collect a `Choice` for every operation that runs in the block, in order."""
    log = _Log()
    held = _SCOPE.get()
    try:
        with _held(held._replace(logs=(*held.logs, log))):
            yield log
    finally:
        log.open = False


def scope() -> Scope:
    """What holds here, for `inside` elsewhere."""
    return _SCOPE.get()


@contextlib.contextmanager
def inside(outer: Scope) -> Iterator[None]:
    """Let hold what held where `outer` was taken, unless the block says otherwise; its records only while open.

    Autograd runs backward in a thread of its own on GPUs, which sees none of the forward's context.
    """
    here = _SCOPE.get()
    logs = (log for log in outer.logs if log.open and not any(log is own for own in here.logs))
    named = here.backend or outer.backend
    with _held(Scope(named, here.fixed or outer.fixed, (*here.logs, *logs))):
        yield


def reasons(operation: str, direction: str, args: tuple) -> dict[str, str | None]:
    """What each form says to these arguments: None where it would run, else why not."""
    device = device_type(operation, direction, args)
    return {
        name: forms.refuses(name, form, direction, args, device)
        for name, form in _FORMS[operation].items()
    }


def choose(operation: str, direction: str, args: tuple) -> Form:
    """The form that computes `operation` for these arguments.

    Args:
        direction: "forward" or "backward".
        args: the arguments of the form's function of that name.

    Raises UnsupportedError if the form asked for by name, or every form, refuses.
    """
    found = _FORMS[operation]
    held = _SCOPE.get()
    name = held.backend or _environment()
    device = device_type(operation, direction, args)
    if name != "auto":
        return _first((name,), {}, operation, direction, args, device)
    struck_off: dict[str, str] = {}
    if measured._ENABLED:
        fixed = (
            held.fixed
            or torch.are_deterministic_algorithms_enabled()
            or torch.compiler.is_compiling()
            or (device == "cuda" and torch.cuda.is_current_stream_capturing())
        )
        known = measured.decision(operation, direction, args, found, fixed)
        if known is not None:
            struck_off = known.struck_off
            form = found[known.form]
            if not fixed and forms.refuses(known.form, form, direction, args, device) is None:
                if held.logs:
                    refused = _why_not(known, operation, direction, args, device)
                    note(operation, direction, known.form, refused)
                return form
    return _first(forms.fixed_order(device), struck_off, operation, direction, args, device)


def _first(
    order: tuple[str, ...],
    struck_off: Mapping[str, str],
    operation: str,
    direction: str,
    args: tuple,
    device: str,
) -> Form:
    """The first of the named forms that does not refuse and was not struck off."""
    found = _FORMS[operation]
    refused: dict[str, str] = {}
    for name in order:
        form = found.get(name)
        if form is None:
            continue
        if name in struck_off:
            refused[name] = f"struck off: {struck_off[name]}"
            continue
        reason = forms.refuses(name, form, direction, args, device)
        if reason is None:
            note(operation, direction, name, refused)
            return form
        refused[name] = reason
    note(operation, direction, None, refused)
    why = "; ".join(f"{form}: {reason}" for form, reason in refused.items())
    by_name = backend() != "auto"
    advice = ' Take use_backend("auto") to let another form run.' if by_name else ""
    raise UnsupportedError(f"{operation}, {direction}: {why}.{advice}")


def _why_not(
    known: Decision, operation: str, direction: str, args: tuple, device: str
) -> dict[str, str]:
    """Why each form that was measured, or that the fixed order has, does not run."""
    refused = {}
    for name in forms.candidates(device):
        if name == known.form or name not in _FORMS[operation]:
            continue
        if name in known.struck_off:
            refused[name] = f"struck off: {known.struck_off[name]}"
        elif name in known.seconds:
            other, best = known.seconds[name] * 1e6, known.seconds[known.form] * 1e6
            refused[name] = f"measured {other:.0f} us, {known.form} {best:.0f} us"
        elif name in forms.fixed_order(device):
            form = _FORMS[operation][name]
            refused[name] = forms.refuses(name, form, direction, args, device) or "not measured"
    return refused


def note(operation: str, direction: str, form: str | None, refused: Mapping[str, str]) -> None:
    """Write a decision into every open record; also for code that takes another path than the
    operations.
    """
    for log in _SCOPE.get().logs:
        log.append(Choice(operation, direction, form, dict(refused)))
