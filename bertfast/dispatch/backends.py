"""The names of the backends, and the order in which they are asked."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

Backend = ModuleType | SimpleNamespace

# "triton:torch": triton, in operations with a matrix product around torch's instead of its own, in attention behind
# torch's forward (`ops/_varlen.py`). "cuda:cublaslt": cuda around cuBLASLt's products in the same way.
NAMES = ("cpu", "cuda", "cuda:cublaslt", "triton", "triton:torch", "eager", "reference")
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "eager", "reference")}


def order(device_type: str) -> tuple[str, ...]:
    """The backends that are asked on a type of device where no table knows better, best first."""
    return _ORDER.get(device_type, ("reference",))


def product_of(name: str) -> str:
    """Which matrix product a backend's name asks for; empty: its own."""
    return name.partition(":")[2]
