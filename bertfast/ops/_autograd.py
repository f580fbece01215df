"""What the operations share: registration with torch.library, the backward op, and gradients of
reference formulas.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .. import dispatch
from ..errors import ArgumentError, UnsupportedError

_LIBRARY = torch.library.Library("bertfast", "FRAGMENT")
GRADIENTS: dict[str, tuple[str, ...]] = {}  # operation -> the arguments whose gradients it gives
_IMPLEMENTATIONS: dict[str, Callable] = {}  # name of an op -> what it computes with
_EAGER: dict[str, type[torch.autograd.Function]] = {}  # operation -> its forward op, differentiable
_WIDE: contextvars.ContextVar[bool] = contextvars.ContextVar("bertfast_wide", default=True)


def define(
    schema: str, implementation: Callable, fake: Callable, tags: Sequence[torch.Tag] = ()
) -> None:
    """Register the op `bertfast::<schema>` for every device, with the fake that tells the shape of
    its results.
    """
    name = schema.partition("(")[0]
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order, *tags)
    _LIBRARY.define(schema, tags=tags)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    _IMPLEMENTATIONS[name] = implementation
    names = [item.name for item in getattr(torch.ops.bertfast, name).default._schema.arguments]

    def fake_on_one_device(*args):  # one meta tensor among others makes torch call the fake
        tensors = [pair for pair in zip(names, args, strict=True) if isinstance(pair[1], Tensor)]
        for argument, tensor in tensors[1:]:
            if tensor.device != tensors[0][1].device:
                expected = f"device {tensors[0][1].device} as {tensors[0][0]}"
                raise ArgumentError(argument, expected, f"device {tensor.device}")
        return fake(*args)

    torch.library.register_fake(f"bertfast::{name}", fake_on_one_device, lib=_LIBRARY)


def through_library() -> bool:
    """Whether a call has to be a torch.ops call because something traces it (torch.compile, export,
    a dispatch mode, torch.func).
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def differentiable(operation: str, *args) -> Tensor | tuple[Tensor, ...]:
    """The forward op with its gradient: as a torch.ops call where something traces it or a tensor
    overrides torch, else without that detour, which takes longer than a small kernel.
    """
    if through_library() or torch.overrides.has_torch_function(args):
        return getattr(torch.ops.bertfast, f"{operation}_fwd").default(*args)
    return _EAGER[operation].apply(*args)


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to be able to come back through a function of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The arguments of a product under torch.autocast: in its dtype, as torch's own linear has them.

    A frozen weight keeps its dtype, and the others follow it. float64 is left alone, as torch leaves it.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    frozen = [tensor.dtype for tensor in given if hasattr(type(tensor), "unpack")]
    dtype = frozen[0] if frozen else torch.get_autocast_dtype(given[0].device.type)
    if any(tensor.dtype == torch.float64 for tensor in given):
        return list(tensors)
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def autocast_beside(x: Tensor, *tensors: Tensor) -> list[Tensor]:
    """What LN takes besides a product of x under torch.autocast: in the widest dtype among them all.

    float32 stays, as it does where torch's own LN takes a residual in float32.
    """
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), x.dtype)
    return [t if t.dtype == dtype else t.to(dtype) for t in tensors]


def run_backward(operation: str, *args) -> tuple[Tensor, ...]:
    """The backward op of an operation with several gradients: the last argument says which are
    wanted.

    Those that are not come back as empty tensors, whatever the form gave, so that the fake can tell
    the shapes.
    """
    results = dispatch.choose(operation, "backward", args).backward(*args)
    return tuple(
        result.contiguous() if wanted and result is not None else args[0].new_empty(0)
        for result, wanted in zip(results, args[-1], strict=True)
    )


def fake_gradients(
    dout: Tensor, needs: Sequence[bool], *inputs: Tensor | None
) -> tuple[Tensor, ...]:
    """Shapes and dtypes of what `run_backward` gives: as the inputs, empty where there is none or
    it is not wanted.
    """
    return tuple(
        dout.new_empty(t.shape, dtype=t.dtype) if t is not None and wanted else dout.new_empty(0)
        for t, wanted in zip(inputs, needs, strict=True)
    )


def differentiate(operation: str, wanted: tuple[int, ...], arguments: Callable) -> None:
    """Give `<operation>_fwd` its gradient by `<operation>_bwd`; a gradient of the gradient raises.

    Args:
        wanted: which arguments of the forward op the gradients of the backward op belong to, in
            order.
        arguments: (forward's arguments, its results) -> the backward op's arguments after the
            first, without `needs`.
    """
    backward_op = getattr(torch.ops.bertfast, f"{operation}_bwd").default
    forward_names = dispatch.names(operation, "forward")
    GRADIENTS[operation] = tuple(forward_names[index] for index in wanted)
    takes_needs = backward_op._schema.arguments[-1].name == "needs"

    def setup(ctx, inputs, output):
        ctx.set_materialize_grads(False)  # zeros for the saved tensors would be as large as they
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[1:])
        kept = arguments(inputs, output)
        ctx.constants = [None if isinstance(item, Tensor) else (item,) for item in kept]
        ctx.save_for_backward(*(item for item in kept if isinstance(item, Tensor)))
        ctx.count, ctx.saved = (
            len(inputs),
            inputs[-1] is not False,
        )  # the last argument is `save`, where there is one
        ctx.scope = dispatch.scope()

    def backward(ctx, grad, *_, compute=backward_op):
        if grad is None:
            return (None,) * ctx.count
        if not ctx.saved:
            raise UnsupportedError(
                f"{operation}_fwd ran with save=False: there is nothing to differentiate from."
            )
        tensors = iter(ctx.saved_tensors)
        kept = [next(tensors) if constant is None else constant[0] for constant in ctx.constants]
        needs = [ctx.needs_input_grad[index] for index in wanted]
        with dispatch.inside(ctx.scope):  # this may be autograd's own thread
            grads = compute(grad, *kept, needs) if takes_needs else (compute(grad, *kept),)
        results: list[Tensor | None] = [None] * ctx.count
        for index, need, result in zip(wanted, needs, grads, strict=True):
            results[index] = result if need else None
        return tuple(results)

    def refuse(ctx, *grads):
        raise UnsupportedError(
            f"{operation} cannot be differentiated twice (double backward): its backward saves nothing for that. "
            "Compute the term that needs second derivatives with plain torch modules."
        )

    forward_eagerly, backward_eagerly = (
        _IMPLEMENTATIONS[f"{operation}_{suffix}"] for suffix in ("fwd", "bwd")
    )

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            output = forward_eagerly(*args)
            setup(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            traced = torch.is_grad_enabled() or through_library()
            return backward(ctx, *grads, compute=backward_op if traced else backward_eagerly)

    _EAGER[operation] = Eager
    name = f"bertfast::{operation}"
    torch.library.register_autograd(f"{name}_fwd", backward, setup_context=setup, lib=_LIBRARY)
    torch.library.register_autograd(f"{name}_bwd", refuse, lib=_LIBRARY)


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of a plain torch function, by torch autograd, for use inside an op (which runs
    below autograd).
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # the first brings autograd's dispatch keys back
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


def nothing_saved(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors in the place of (a saved tensor in the dtype of x, mean, rstd)."""
    dtype = statistics_dtype(x.dtype)
    return x.new_empty(0), x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, mean, rstd and lse: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def in_own_dtype() -> Iterator[None]:
    """Reference formulas in the block compute in their tensors' own dtype, as plain torch would."""
    token = _WIDE.set(False)
    try:
        yield
    finally:
        _WIDE.reset(token)


def upcast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype of sums (inside `in_own_dtype`: as they are); a frozen weight is unpacked first."""
    if not _WIDE.get():
        return [None if t is None else thaw(t) for t in tensors]
    return [None if t is None else thaw(t).to(statistics_dtype(t.dtype)) for t in tensors]


def thaw(weight: Tensor) -> Tensor:
    """The weight itself, or the exact weight behind a packed.FrozenParameter."""
    unpack = getattr(type(weight), "unpack", None)
    return weight if unpack is None else unpack(weight)


def rounded(results: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """The results in the dtype of the operation: the one rounding at its end."""
    return tuple(None if result is None else result.to(dtype) for result in results)
