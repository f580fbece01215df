"""What the reference formulas share: the dtype of sums, products and LN with their gradients."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ._weights import unpacked

_UPCAST: contextvars.ContextVar[bool] = contextvars.ContextVar("bertfast_upcast", default=True)


def supports(call) -> None:
    """The reference computes every call."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, mean, rstd and lse: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of a plain torch function, by torch autograd, for use inside an op (which runs below autograd)."""
    # the first brings autograd's dispatch keys back
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        output = function(*inputs)
        return torch.autograd.grad(output, inputs, grad)


def linear_gradients(
    dout: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dweight, dbias) of x · weightᵀ + bias, None where not wanted."""
    dx = dout @ weight if needs[0] else None
    dweight = dout.t() @ x if needs[1] else None
    return dx, dweight, dout.sum(0) if needs[2] else None


def layer_norm(
    z: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LN over the last dimension of z [T,N]: (result [T,N], mean [T], rstd [T]), statistics in fp32."""
    weight, bias = _beside(z, weight, bias)
    out, mean, rstd = torch.native_layer_norm(z, z.shape[-1:], weight, bias, eps)
    return out, mean.view(-1), rstd.view(-1)


def layer_norm_gradients(
    dout: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dz, dweight, dbias) of LN from its saved statistics [T]."""
    dtype, wanted = statistics_dtype(z.dtype), [True, True, True]
    mean, rstd = mean.to(dtype).unsqueeze(1), rstd.to(dtype).unsqueeze(1)
    (weight,) = _beside(z, weight)
    return torch.ops.aten.native_layer_norm_backward(
        dout, z, z.shape[-1:], mean, rstd, weight, torch.zeros_like(weight), wanted
    )


def _beside(z: Tensor, *rows: Tensor) -> list[Tensor]:
    """LN's parameters as torch wants them for fp32 statistics of z: in fp32 on the CPU, in z's dtype on a GPU."""
    return [row.to(statistics_dtype(z.dtype)) if z.is_cpu else row for row in rows]


@contextlib.contextmanager
def in_own_dtype() -> Iterator[None]:
    """Reference formulas in the block, or function, compute in their tensors' own dtype, as plain torch would."""
    token = _UPCAST.set(False)
    try:
        yield
    finally:
        _UPCAST.reset(token)


def upcast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype of sums (inside `in_own_dtype`: as they are); a prepacked weight is unpacked first."""
    if not _UPCAST.get():
        return [None if t is None else unpacked(t) for t in tensors]
    return [None if t is None else unpacked(t).to(statistics_dtype(t.dtype)) for t in tensors]


def rounded(results: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """The results in the dtype of the operation: the one rounding at its end."""
    return tuple(None if result is None else result.to(dtype) for result in results)
