"""The backends of an operation: where each stands, the order in which they are asked, and their import, which waits."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace

logger = logging.getLogger("bertfast")

Backend = ModuleType | SimpleNamespace

# "triton:torch": triton, in operations with a matrix product around torch's instead of its own.
NAMES = ("cpu", "cuda", "triton", "triton:torch", "eager", "reference")
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "eager", "reference")}


def order(device_type: str) -> tuple[str, ...]:
    """The backends that are asked on a type of device where no table knows better, best first."""
    return _ORDER.get(device_type, ("reference",))


def product_of(name: str) -> str:
    """Which matrix product a backend's name asks for; empty: its own."""
    return name.partition(":")[2]


class Backends(Mapping):
    """The backends of one operation by name, each imported when it is first asked for.

    One that cannot be imported refuses everything, with the reason.
    """

    def __init__(self, package: str):
        self._package = package
        self._loaded: dict[str, Backend] = {}

    def __getitem__(self, name: str) -> Backend:
        backend = self._loaded.get(name)
        if backend is None:
            backend = self._loaded[name] = _load(self._package, name)
        return backend

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


def _load(package: str, name: str) -> Backend:
    module = name.partition(":")[0]
    if module == "triton" and (reason := triton_cannot_be_imported()):
        return _absent(reason)
    if module == "eager" and importlib.util.find_spec(f"{package}.eager") is None:
        parent, _, operation = package.rpartition(".")
        return importlib.import_module(f"{parent}._eager").backend(operation)
    try:
        if module in ("cpu", "cuda"):  # SHIM
            native = importlib.import_module(f"{package}.native")
            part = native if module == "cpu" else native.cuda
            return SimpleNamespace(
                forward=part.forward,
                backward=part.backward,
                supports=lambda call: part.supports(call.direction, *call),
            )
        found = importlib.import_module(f"{package}.{module}")
    except Exception as error:  # a broken installation raises whatever it likes
        if module in ("eager", "reference"):
            raise
        native = module in ("cpu", "cuda")
        what = "native extension not built" if native else f"{module} cannot be imported"
        return _absent(f"{what}: {error}")
    return found


def _absent(reason: str) -> SimpleNamespace:
    return SimpleNamespace(supports=lambda call: reason)


def refuses(name: str, backend: Backend, call: tuple) -> str | None:
    """Why a backend does not compute a call, or None."""
    if name.startswith("triton") and call.lead.device.type == "cuda":
        reason = triton_cannot_run()
        if reason is not None:
            if name == "triton":
                _say_once(reason)
            return reason
    return backend.supports(call)


@functools.cache
def triton_cannot_be_imported() -> str | None:
    """Why the Triton backends cannot be imported, or None; tried once a process."""
    try:
        importlib.import_module("bertfast.ops._triton")
    except Exception as error:
        return " ".join(str(error).split())
    return None


@functools.cache
def triton_cannot_run() -> str | None:
    """Why the Triton backends cannot run on a GPU of this machine, or None; tried once a process."""
    reason = triton_cannot_be_imported()
    if reason is not None:
        return reason
    triton = importlib.import_module("bertfast.ops._triton")
    reason = None if triton.interpreted() else _no_compiler(triton.knobs)
    if reason is not None:
        return reason
    try:
        triton.device_properties()
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
    logger.warning("the triton backend does not run, others serve the GPU: %s", reason)
