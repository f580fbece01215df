"""Runs the PTX of GPU kernels on the CPU, with checks. README.md says what it sees and what it does not."""

from .faults import Fault, Place
from .launch import Buffer, Kernel, Module, Report, SparseBuffer, launch, load

__all__ = [
    "Buffer",
    "Fault",
    "Kernel",
    "Module",
    "Place",
    "Report",
    "SparseBuffer",
    "launch",
    "load",
]
