"""The forms of an operation: where each stands, the order in which they are asked, and their import, which waits."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

logger = logging.getLogger("bertfast")

Form = ModuleType | SimpleNamespace


class Source(NamedTuple):
    """Where a form stands, and on which types of device it is asked.

    Fields:
        module: the file in the operation's folder.
        part: the attribute of the module that is the form; None: the module itself.
        order: devices whose fixed order holds the form. tried: devices on which it is measured.
    """

    module: str
    part: str | None
    order: tuple[str, ...]
    tried: tuple[str, ...]


SOURCES = {  # best first
    "cpu": Source("cpu", None, order=("cpu",), tried=("cpu",)),
    "cuda": Source("cuda", None, order=("cuda",), tried=("cuda",)),
    "triton": Source("triton", None, order=("cuda",), tried=("cuda",)),
    "triton_matmul": Source("triton", "matmul", order=(), tried=("cuda",)),
    "torch": Source("reference", None, order=("cuda",), tried=("cpu", "cuda")),
    "reference": Source("reference", None, order=("cpu", "cuda"), tried=("cpu", "cuda")),
}
NAMES = tuple(SOURCES)


@functools.cache
def fixed_order(device_type: str) -> tuple[str, ...]:
    """The forms that are asked on a type of device where nothing is measured, best first."""
    names = tuple(name for name in NAMES if device_type in SOURCES[name].order)
    return names or ("reference",)


@functools.cache
def candidates(device_type: str) -> tuple[str, ...]:
    """The forms that are measured on a type of device: those of the fixed order first."""
    order = fixed_order(device_type)
    tried = [name for name in NAMES if device_type in SOURCES[name].tried]
    return (*order, *(name for name in tried if name not in order))


class Forms(Mapping):
    """The forms of one operation by name, each imported when it is first asked for.

    One that cannot be imported refuses everything, with the reason.
    """

    def __init__(self, package: str):
        self._package = package
        self._loaded: dict[str, Form] = {}

    def __getitem__(self, name: str) -> Form:
        form = self._loaded.get(name)
        if form is None:
            form = self._loaded[name] = _load(self._package, name)
        return form

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


def _load(package: str, name: str) -> Form:
    source = SOURCES[name]
    if source.module == "triton" and (reason := triton_cannot_be_imported()):
        return _absent(reason)
    try:
        module = importlib.import_module(f"{package}.{source.module}")
    except Exception as error:  # a broken installation raises whatever it likes
        if source.module == "reference":
            raise
        lacks = (
            "native extension not built"
            if source.module in ("cpu", "cuda")
            else f"{name} cannot be imported"
        )
        return _absent(f"{lacks}: {error}")
    if name == "torch":
        parent, _, operation = package.rpartition(".")
        return importlib.import_module(f"{parent}._torch").form(operation, module)
    if source.part is None:
        return module
    return getattr(module, source.part, None) or _absent("this operation has no such form")


def _absent(reason: str) -> SimpleNamespace:
    return SimpleNamespace(supports=lambda direction, *args: reason)


def refuses(name: str, form: Form, direction: str, args: tuple, device_type: str) -> str | None:
    """Why a form does not compute these arguments, or None."""
    if device_type == "cuda" and SOURCES[name].module == "triton":
        reason = triton_cannot_run()
        if reason is not None:
            if name == "triton":
                _say_once(reason)
            return reason
    return form.supports(direction, *args)


@functools.cache
def triton_cannot_be_imported() -> str | None:
    """Why the Triton forms cannot be imported, or None; tried once a process."""
    try:
        importlib.import_module("bertfast.ops._triton")
    except Exception as error:
        return " ".join(str(error).split())
    return None


@functools.cache
def triton_cannot_run() -> str | None:
    """Why the Triton forms cannot run on a GPU of this machine, or None; tried once a process."""
    reason = triton_cannot_be_imported()
    if reason is not None:
        return reason
    triton = importlib.import_module("bertfast.ops._triton")
    reason = None if triton.interpreted() else _no_compiler(triton.knobs)
    if reason is not None:
        return reason
    try:
        triton.card()
    except Exception as error:  # the driver's module is compiled here
        return "triton's driver does not start: " + " ".join(str(error).split())
    return None


def _no_compiler(knobs: ModuleType) -> str | None:
    """Triton compiles its launchers in C when it first runs: the search it makes then, made before anything fails."""
    if getattr(getattr(knobs, "build", None), "impl", None) is not None:
        return None
    wanted = os.environ.get("CC")
    if wanted is not None:
        found = shutil.which(wanted)
        return None if found else f"triton needs a C compiler, and CC is {wanted!r}: no program"
    if any(map(shutil.which, ("gcc", "clang", "cc"))):
        return None
    return "triton needs a C compiler: there is no gcc and no clang, and CC is not set"


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("the triton forms do not run, other forms serve the GPU: %s", reason)
