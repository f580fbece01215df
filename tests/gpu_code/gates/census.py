"""Every kernel that the Triton backends ship, as they launch it: one record a (configuration, dtype) and arch.

They run on an emulated device that compiles and does not execute, at sizes that reach every entry of their tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch

import harness
from bertfast import dispatch
from bertfast.ops import _triton
from gpu_code.backends import allowing_tf32
from gpu_code.triton_driver import Launch, emulated
from harness import Case

OPERATIONS = harness.OPERATIONS
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}
MULTIPROCESSORS = 108  # an A100's; tiles are chosen so that all have work
_FEW, _SOME, _MANY = (16,), (128,) * 2, (128,) * 16
_SIZES: dict[str, dict[str, tuple]] = {  # lengths, inner, outer[, heads, p]
    # "mixed": LN in float32; "ids": dropout counts by the examples' ids
    "embedding": {
        "base": (_MANY, 768, 512, 1, 0.1),
        "wide": (_MANY, 2048, 512),
    },
    "qkv_projection": {
        "few": (_FEW, 768, 768, 12),
        "some": (_SOME, 768, 768, 12),
        "many": (_MANY, 768, 768, 12),
    },
    "attention": {
        f"head{size}-{kind}{'-dropout' if p else ''}": ((length,) * 2, 0, size * 2, 2, p)
        for size in (32, 64, 128)
        for kind, length in (("tiny", 61), ("short", 125), ("long", 512))  # + 3: max_seqlen
        for p in (0.0, 0.1)
    }
    | {
        f"head{size}-{kind}-ids": ((length,) * 2, 0, size * 2, 2, 0.1)
        for size, kind, length in ((32, "tiny", 61), (64, "tiny", 61), (64, "long", 512))
    },
    "linear_gelu": {
        "few": (_FEW, 768, 3072),
        "some": (_SOME, 768, 3072),
        "many": (_MANY, 768, 3072),
    },
    "linear_layernorm": {
        "few": (_FEW, 768, 768, 1, 0.1),
        "many": (_MANY, 3072, 768),
        "minilm": (_MANY, 384, 384, 1, 0.1),
        "wide": (_SOME, 768, 2048),
        "mixed": (_MANY, 3072, 768, 1, 0.1),
        "minilm-mixed": (_MANY, 384, 384, 1, 0.1),
        "wide-mixed": (_SOME, 768, 2048),
    },
    "gelu_layernorm": {
        "few": (_FEW, 768, 768),
        "minilm": (_MANY, 384, 384),
        "mixed": (_FEW, 768, 768),
        "minilm-mixed": (_MANY, 384, 384),
    },
    "masked_cross_entropy": {"few": (_FEW, 768, 8192), "many": (_MANY, 768, 8192)},
}

# The backends around torch's own product have one kernel that the others have not: GELU by itself.
_SECOND = {("linear_gelu", "few"): ("triton:torch",)}


class Shipped(NamedTuple):
    """One compiled kernel and where it is launched."""

    operation: str
    direction: str
    case: str
    dtype: str
    launch: Launch

    def __str__(self) -> str:
        return f"{self.operation} {self.direction} {self.case} {self.dtype} {self.launch.name}"


def take(
    arch: int | str, operations=OPERATIONS, dtypes=("bf16", "fp32", "tf32")
) -> tuple[list[Shipped], set]:
    """(the kernels for an architecture, the (table, key) pairs that were picked)."""
    shipped: list[Shipped] = []
    device = emulated(arch, execute=False, multiprocessors=MULTIPROCESSORS)
    with device as compiler, picks() as picked:
        for operation, dtype in product(operations, dtypes):
            for name, sizes in _SIZES[operation].items():
                case, backends = _case(name, sizes), ("triton", *_SECOND.get((operation, name), ()))
                for backend in backends:
                    with allowing_tf32(dtype == "tf32"):
                        found = list(launched(compiler, operation, case, DTYPES[dtype], backend))
                    for direction, launches in found:
                        shipped += (Shipped(operation, direction, name, dtype, x) for x in launches)
    return _distinct(shipped), picked


def launched(
    device, operation: str, case: Case, dtype: torch.dtype, backend: str = "triton"
) -> Iterator[tuple[str, list]]:
    """("forward", its launches), then ("backward", its launches) of a backend of an operation."""
    inputs = harness.make_inputs(operation, case, dtype)
    leaves = {
        name: value.detach().requires_grad_()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }
    with dispatch.use_backend(backend):
        before = len(device.launches)
        out = harness.public(operation)(**leaves)
        middle = len(device.launches)
        out.backward(torch.ones_like(out))
    yield "forward", device.launches[before:middle]
    yield "backward", device.launches[middle:]


@contextlib.contextmanager
def picks() -> Iterator[set[tuple[str, str]]]:
    """Collects the (table, key) pairs that the backends pick in the block."""
    picked: set[tuple[str, str]] = set()
    plain = _triton.Table.pick

    def noting(self, key):
        picked.add((self.name, key))
        return plain(self, key)

    _triton.Table.pick = noting
    try:
        yield picked
    finally:
        _triton.Table.pick = plain


def keys(arch: int) -> set[tuple[str, str]]:
    """Every (table, key) that the tables hold for an architecture."""
    return {(name, key) for name, table in _triton.TABLES.items() for key in table.configs(arch)}


def _case(name: str, sizes: tuple) -> Case:
    lengths, inner, outer, *rest = sizes
    heads, p = (*rest, 1, 0.0)[:2] if len(rest) < 2 else rest
    mixed, variant = name.endswith("mixed"), "ids" if name.endswith("ids") else ""
    return Case(name, lengths, inner, outer, heads, p, mixed=mixed, variant=variant, eps=1e-12)


def _distinct(shipped: list[Shipped]) -> list[Shipped]:
    """The first record of each compiled kernel."""
    return list({record.launch.kernel.hash: record for record in reversed(shipped)}.values())[::-1]
