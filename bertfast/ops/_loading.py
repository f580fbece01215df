"""The backends of an operation, each imported when it is first asked for, and whether Triton can be."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

from ..dispatch.backends import NAMES, Backend

logger = logging.getLogger("bertfast")


class Backends(Mapping):
    """The backends of one operation by name. One that cannot be imported refuses every call, with the reason."""

    def __init__(self, operation: str):
        self._operation = operation
        self._loaded: dict[str, Backend] = {}

    def __getitem__(self, name: str) -> Backend:
        backend = self._loaded.get(name)
        if backend is None:
            backend = self._loaded[name] = _load(self._operation, name)
        return backend

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


def _load(operation: str, name: str) -> Backend:
    package = f"{__package__}.{operation}"
    module, _, product = name.partition(":")
    if module == "triton" and (reason := triton_cannot_be_imported()):
        return _absent(reason, _say_once)
    if module == "eager" and importlib.util.find_spec(f"{package}.eager") is None:
        from . import _eager

        return _eager.of(importlib.import_module(f"{package}.reference"))
    try:
        found = importlib.import_module(f"{package}.{module}")
    except Exception as error:  # a broken installation raises whatever it likes
        if module in ("eager", "reference"):
            raise
        if module in ("cpu", "cuda"):
            return _absent(f"native extension not built: {error}")
        if getattr(error, "name", None) == f"{package}.{module}":
            return _absent(f"this operation has no backend {module}")
        return _absent(f"{module} cannot be imported: {error}")
    if product == "cublaslt":
        from . import _cublaslt

        return _cublaslt.of(operation, found)
    if product == "torch" and operation == "attention":
        from . import _varlen

        return _varlen.of(found)
    return found


def _absent(reason: str, on_gpu=lambda reason: None) -> SimpleNamespace:
    """A backend that refuses; `on_gpu` is told the reason where a GPU would have been served."""

    def supports(call) -> str:
        if call.lead.device.type == "cuda":
            on_gpu(reason)
        return reason

    return SimpleNamespace(supports=supports)


@functools.cache
def triton_cannot_be_imported() -> str | None:
    """Why the Triton backends cannot be imported, or None; tried once a process."""
    try:
        importlib.import_module("bertfast.ops._triton")
    except Exception as error:
        return " ".join(str(error).split())
    return None


def triton_cannot_run() -> str | None:
    """Why the Triton backends cannot run on a GPU of this machine, or None."""
    reason = triton_cannot_be_imported()
    return reason or importlib.import_module("bertfast.ops._triton").cannot_run()


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("the backend triton does not run, others serve the GPU: %s", reason)
