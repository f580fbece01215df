"""Which form of an operation runs.

A form is a module with `forward`, `backward` and `supports(direction, *args) -> None | reason`. The
automatic choice takes the first form, in the order of `ORDER`, that supports the arguments, and can
be recorded with the reasons of those that refused. A form asked for by name, with `use_backend` or
the environment variable `BERTFAST_BACKEND`, runs or raises.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

from .errors import ArgumentError, UnsupportedError

ORDER = ("cpu", "triton", "reference")
_MODULES = {
    "cpu": "native",
    "triton": "triton",
    "reference": "reference",
}  # the file of each form in an operation's folder
_FORMS: dict[str, dict[str, ModuleType | SimpleNamespace]] = {}
_BACKEND: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "bertfast_backend", default=None
)
_RECORDS: contextvars.ContextVar[tuple[list, ...]] = contextvars.ContextVar(
    "bertfast_records", default=()
)


class Choice(NamedTuple):
    """One decision: the form that ran (None: none did) and why the forms before it refused."""

    operation: str
    direction: str
    form: str | None
    reasons: dict[str, str]


def register(operation: str, package: str) -> None:
    """Import the forms of `operation` from its package; one that cannot be imported refuses with
    the reason.
    """
    forms: dict[str, ModuleType | SimpleNamespace] = {}
    for form in ORDER:
        try:
            forms[form] = importlib.import_module(f"{package}.{_MODULES[form]}")
        except ImportError as error:
            if form == "reference":
                raise
            forms[form] = _absent(f"native extension not built: {error}")
    _FORMS[operation] = forms


def _absent(reason: str) -> SimpleNamespace:
    return SimpleNamespace(supports=lambda direction, *args: reason)


def operations() -> tuple[str, ...]:
    """The names of the operations, in the order of their registration."""
    return tuple(_FORMS)


def backend() -> str:
    """The backend in force: that of the innermost `use_backend`, else of `BERTFAST_BACKEND` (read once), else
    "auto".
    """
    return _BACKEND.get() or _environment()


@functools.cache
def _environment() -> str:
    return _valid(os.environ.get("BERTFAST_BACKEND") or "auto", "BERTFAST_BACKEND")


def _valid(name: str, argument: str) -> str:
    if name not in ("auto", *ORDER):
        raise ArgumentError(argument, "one of " + ", ".join(("auto", *ORDER)), repr(name))
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operation in the form `name` ("cpu", "reference"), or choose freely ("auto"),
    inside the block.

    Holds for the calling thread or task. Raises ArgumentError for an unknown name; an operation
    that the named form cannot compute raises UnsupportedError with the reason.
    """
    token = _BACKEND.set(_valid(name, "name"))
    try:
        yield
    finally:
        _BACKEND.reset(token)


@contextlib.contextmanager
def record() -> Iterator[list[Choice]]:
    """Collect a `Choice` for every operation that runs in the block, in order."""
    log: list[Choice] = []
    token = _RECORDS.set((*_RECORDS.get(), log))
    try:
        yield log
    finally:
        _RECORDS.reset(token)


def reasons(operation: str, direction: str, args: tuple) -> dict[str, str | None]:
    """What each form says to these arguments: None where it would run, else why not."""
    return {name: form.supports(direction, *args) for name, form in _FORMS[operation].items()}


def choose(operation: str, direction: str, args: tuple) -> ModuleType | SimpleNamespace:
    """The form that computes `operation` for these arguments.

    Args:
        direction: "forward" or "backward".
        args: the arguments of the form's function of that name.

    Raises UnsupportedError if the form asked for by name, or every form, refuses.
    """
    forms = _FORMS[operation]
    name = _BACKEND.get() or _environment()
    if name != "auto":
        forms = {name: forms[name]}
    refused: dict[str, str] = {}
    for form_name, form in forms.items():
        reason = form.supports(direction, *args)
        if reason is None:
            note(operation, direction, form_name, refused)
            return form
        refused[form_name] = reason
    note(operation, direction, None, refused)
    why = "; ".join(f"{form}: {reason}" for form, reason in refused.items())
    advice = "" if name == "auto" else ' Take use_backend("auto") to let another form run.'
    raise UnsupportedError(f"{operation}, {direction}: {why}.{advice}")


def note(operation: str, direction: str, form: str | None, refused: dict[str, str]) -> None:
    """Write a decision into every open record; also for code that takes another path than the
    operations.
    """
    for log in _RECORDS.get():
        log.append(Choice(operation, direction, form, dict(refused)))
