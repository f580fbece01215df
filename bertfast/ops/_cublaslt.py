"""The backend `cuda:cublaslt`: the CUDA kernels around products of cuBLASLt, which torch has loaded."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor

from .. import dispatch, extension
from ._weights import KeptParameter

NAME = "cuda:cublaslt"
_PRODUCTS = ("qkv_projection", "linear_gelu", "linear_layernorm", "gelu_layernorm")
_OPERANDS = ("x", "weight", "wq", "wk", "wv", "dqkv")  # of a product, as the caller gave them
_VECTORS = ("bias", "bq", "bk", "bv")
_ALIGNMENT = 16  # bytes: less than that cuBLASLt takes slowly, or not at all


def of(operation: str, cuda: ModuleType) -> ModuleType | SimpleNamespace:
    """The backend of an operation, made of its backend `cuda`; that one itself where there is no product."""
    if operation not in _PRODUCTS:
        return cuda

    def supports(call: Any) -> str | None:
        return cuda.supports(call) or _refuses(call)

    return SimpleNamespace(
        PRODUCTS=("cublaslt",), supports=supports, forward=cuda.forward, backward=cuda.backward
    )


def _refuses(call: Any) -> str | None:
    """Why cuBLASLt has no product for a call that the kernels can compute, or None."""
    if call.operation == "linear_gelu" and call.direction == "forward":
        # asked for by name, as for a whole model, it is what `cuda` does
        return None if dispatch.backend() == NAME else "cuBLASLt's GELU is the tanh form"
    if dispatch.is_batch_invariant():
        return "how cuBLASLt cuts a sum depends on the batch"
    if reason := extension.cuda.cublaslt_refuses():
        return reason
    given = call._asdict()
    for name in _OPERANDS:
        operand = given.get(name)
        if isinstance(operand, Tensor) and _odd(operand):
            return f"{name}: its rows are no multiples of 16 bytes, or overlap"
    for name in _VECTORS:
        vector = given.get(name)
        if isinstance(vector, Tensor) and vector.data_ptr() % _ALIGNMENT:
            return f"{name} does not begin at a multiple of 16 bytes"
    weight = given.get("weight", given.get("wq"))
    if weight.shape[0] * call.x.element_size() % _ALIGNMENT:  # of results, and of dy
        return f"{weight.shape[0]} features are no multiple of 16 bytes"
    return None


def _odd(operand: Tensor) -> bool:
    """Whether the rows that a kernel is given lie in another way than cuBLASLt takes them."""
    row, size = operand.shape[1:].numel(), operand.element_size()
    if row * size % _ALIGNMENT:
        return True
    if isinstance(operand, KeptParameter) or operand.stride(-1) != 1:
        return False  # it gets a copy
    apart = operand.stride(0) if operand.shape[0] > 1 else row
    return bool(apart < row or apart * size % _ALIGNMENT or operand.data_ptr() % _ALIGNMENT)
