"""The contract of an operation, written once: from it come both ops of torch.library, their fakes, and the gradient.

A backend has `supports(call) -> None | reason`, and `forward` and `backward`, which take a call's arguments in order.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..errors import ArgumentError, UnsupportedError
from ._loading import Backends

_LIBRARY = torch.library.Library("bertfast", "FRAGMENT")
CONTRACTS: dict[str, Contract] = {}

Shape = tuple[tuple[int, ...], torch.dtype]


def define(
    schema: str, implementation: Callable, fake: Callable, tags: Sequence[torch.Tag] = ()
) -> torch._ops.OpOverload:
    """Register the op `bertfast::<schema>` for every device, with the fake that tells the shape of its results."""
    name = schema.partition("(")[0]
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order, *tags)
    _LIBRARY.define(schema, tags=tags)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    op = getattr(torch.ops.bertfast, name).default
    names = [item.name for item in op._schema.arguments]

    def fake_on_one_device(*args):  # one meta tensor among others makes torch call the fake
        tensors = [pair for pair in zip(names, args, strict=True) if isinstance(pair[1], Tensor)]
        for argument, tensor in tensors[1:]:
            if tensor.device != tensors[0][1].device:
                expected = f"device {tensors[0][1].device} as {tensors[0][0]}"
                raise ArgumentError(argument, expected, f"device {tensor.device}")
        return fake(*args)

    torch.library.register_fake(f"bertfast::{name}", fake_on_one_device, lib=_LIBRARY)
    return op


def through_library() -> bool:
    """Whether a call has to be a torch.ops call because something traces it (torch.compile, export,
    a dispatch mode, torch.func).
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


class Contract:
    """One operation. Calling it with the forward's arguments, without `save`, gives the first result, differentiable.

    Args:
        name: that of the operation, of its package and of its ops, `<name>_fwd` and `<name>_bwd`.
        arguments: of the forward, as in a schema of torch.library.
        lead: the argument whose dtype and device are the operation's.
        check: raises ArgumentError for a call that is wrong.
        results: of the forward, the result first and what is saved for backward after it.
        shapes: from a call of the forward, the shape and dtype of each result.
        saved: arguments of the backward after the gradient of the result, names of the forward's arguments and results.
        gradients: arguments that have a gradient, each with a function of the backward's call that gives a tensor of
            its shape and dtype; None: the argument itself, which is saved.
        save: the forward has a last argument that tells whether anything but the result is wanted.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        *,
        lead: str,
        check: Callable[[Any], None],
        results: Sequence[str],
        shapes: Callable[[Any], Sequence[Shape]],
        saved: Sequence[str],
        gradients: Mapping[str, Callable[[Any], Tensor] | None],
        save: bool = True,
    ):
        self.name, self.results, self.gradients = name, tuple(results), tuple(gradients)
        self._check, self._shapes, self._save = check, shapes, save
        self._examples = tuple(gradients.values())
        arguments += ", bool save" * save
        types = {item.split()[1]: item.split()[0] for item in arguments.split(", ")}
        types |= dict.fromkeys(results, "Tensor")
        kept = [f"Tensor d{results[0]}", *(f"{types[item]} {item}" for item in saved)]
        self._several = len(gradients) > 1
        kept += ["bool[] needs"] * self._several
        self.forward = _call_type(name, "forward", arguments, lead)
        lead = lead if lead in saved else f"d{results[0]}"
        self.backward = _call_type(name, "backward", ", ".join(kept), lead)
        fields = self.forward._fields
        self._wanted = [fields.index(item) for item in gradients]
        self._saved = [
            (False, fields.index(item)) if item in fields else (True, results.index(item))
            for item in saved
        ]
        dispatch.register(name, Backends(name))
        self.forward_op = define(
            f"{name}_fwd({arguments}) -> {_tensors(len(results))}", self._forward, self._fake
        )
        self.backward_op = define(
            f"{name}_bwd({', '.join(kept)}) -> {_tensors(len(gradients))}",
            self._backward,
            self._fake_backward,
        )
        self._eager = self._differentiate()
        CONTRACTS[name] = self

    def __call__(self, *args) -> Tensor:
        grad = torch.is_grad_enabled() and any(
            args[i] is not None and args[i].requires_grad for i in self._wanted
        )
        args += (grad,) * self._save
        if through_library() or (grad and torch.overrides.has_torch_function(args)):
            results = self.forward_op(*args)
        elif grad:  # without the detour through torch.ops, which takes longer than a small kernel
            results = self._eager.apply(*args)
        else:
            results = self._run(*args)
        return results[0] if len(self.results) > 1 else results

    def _run(self, *args):
        call = self.forward(*args)
        self._check(call)
        return dispatch.run(call)

    def _forward(self, *args):
        """The forward op: nothing that is saved is None, and empty where it is not wanted."""
        results = self._run(*args)
        if not self._save or args[-1]:
            return results
        return results[0], *self._empty(self.forward(*args))[1:]

    def _empty(self, call):
        lead = call.lead
        return tuple(lead.new_empty(0, dtype=dtype) for _, dtype in self._shapes(call))

    def _fake(self, *args):
        call = self.forward(*args)
        results = tuple(
            call.lead.new_empty(shape, dtype=dtype) for shape, dtype in self._shapes(call)
        )
        if self._save and not call.save:
            results = (results[0], *self._empty(call)[1:])
        return results if len(results) > 1 else results[0]

    def _backward(self, *args):
        """The backward op: of several gradients those that are not wanted are empty."""
        results = dispatch.run(self.backward(*args))
        if not self._several:
            return results.contiguous()
        return tuple(
            result.contiguous() if wanted and result is not None else args[0].new_empty(0)
            for result, wanted in zip(results, args[-1], strict=True)
        )

    def _fake_backward(self, *args):
        call = self.backward(*args)
        needs = call.needs if self._several else [True]
        like = [
            getattr(call, name) if example is None else example(call)
            for name, example in zip(self.gradients, self._examples, strict=True)
        ]
        results = tuple(
            t.new_empty(t.shape) if t is not None and wanted else call[0].new_empty(0)
            for t, wanted in zip(like, needs, strict=True)
        )
        return results if self._several else results[0]

    def _setup(self, ctx, inputs, output):
        ctx.set_materialize_grads(False)  # zeros for the saved tensors would be as large as they
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[1:])
        outputs = output if isinstance(output, tuple) else (output,)
        kept = [(outputs if result else inputs)[i] for result, i in self._saved]
        ctx.constants = [None if isinstance(item, Tensor) else (item,) for item in kept]
        ctx.save_for_backward(*(item for item in kept if isinstance(item, Tensor)))
        ctx.count, ctx.saved = len(inputs), not self._save or inputs[-1]
        ctx.scope = dispatch.scope()

    def _gradients(self, ctx, grad, compute):
        """A gradient, or None, for each argument of the forward op."""
        results: list[Tensor | None] = [None] * ctx.count
        if grad is None:
            return tuple(results)
        if not ctx.saved:
            raise UnsupportedError(
                f"{self.name}_fwd ran with save=False: there is nothing to differentiate from."
            )
        tensors = iter(ctx.saved_tensors)
        kept = [next(tensors) if constant is None else constant[0] for constant in ctx.constants]
        needs = [ctx.needs_input_grad[index] for index in self._wanted]
        with dispatch.inside(ctx.scope):  # this may be autograd's own thread
            grads = compute(grad, *kept, needs) if self._several else (compute(grad, *kept),)
        for index, need, result in zip(self._wanted, needs, grads, strict=True):
            results[index] = result if need else None
        return tuple(results)

    def _differentiate(self) -> type[torch.autograd.Function]:
        """Give the forward op its gradient; a gradient of the gradient raises. Returns the same without torch.ops."""
        contract = self

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                output = contract._forward(*args)
                contract._setup(ctx, args, output)
                return output

            @staticmethod
            def backward(ctx, grad, *_):
                traced = torch.is_grad_enabled() or through_library()
                compute = contract.backward_op if traced else contract._backward
                return contract._gradients(ctx, grad, compute)

        def backward(ctx, grad, *_):
            return contract._gradients(ctx, grad, contract.backward_op)

        def refuse(ctx, *grads):
            raise UnsupportedError(
                f"{contract.name} cannot be differentiated twice (double backward): its backward saves nothing for "
                "that. Compute the term that needs second derivatives with plain torch modules."
            )

        name = f"bertfast::{self.name}"
        torch.library.register_autograd(
            f"{name}_fwd", backward, setup_context=self._setup, lib=_LIBRARY
        )
        torch.library.register_autograd(f"{name}_bwd", refuse, lib=_LIBRARY)
        return Eager


def _call_type(operation: str, direction: str, arguments: str, lead: str) -> type:
    """A named tuple of a backend's arguments, which knows its operation, direction and leading tensor."""
    names = re.findall(r"(\w+)(?:,|$)", arguments)
    fields = namedtuple(f"{operation}_{direction}", names)
    members = {"__slots__": (), "operation": operation, "direction": direction}
    return type(fields.__name__, (fields,), {**members, "lead": getattr(fields, lead)})


def _tensors(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
