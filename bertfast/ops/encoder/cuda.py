"""The CUDA backend of this operation."""

from collections.abc import Sequence

from torch import Tensor

from ... import extension
from .. import _graphs
from . import _cuda_recorded, cpu
from .cpu import odd, sizes_of


def supports(call) -> str | None:
    """None where the CUDA backend computes this call, else the reason."""
    if reason := extension.refuses_cuda(call.x) or odd(call):
        return reason
    sizes = sizes_of(call)
    hidden, inner, heads, head_size = (
        sizes[name] for name in ("hidden", "inner", "heads", "head_size")
    )
    return extension.refuses_cuda(
        call.x,
        size=(sizes["tokens"], hidden, inner, heads * head_size),
        features=(hidden,),
        heads=(heads,),
        head_size=(head_size,),
    )


def forward(call) -> tuple[Tensor, Tensor | None]:
    """See `bertfast.ops.encoder`; without a gradient. By a graph where one was recorded."""
    found = None if any(call.p) else _graphs.replayed(_request(call))
    if found is None:
        return cpu.forward(call)
    return (found[-1], found) if call.states else (found, None)


def forward_saving(
    call, needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor], _cuda_recorded.Recorded | None]:
    """As the CPU's; by a graph where training may be recorded."""
    return _cuda_recorded.forward(call, needs) or cpu.forward_saving(call, needs)


def backward(
    call,
    dout: Tensor,
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    recorded: _cuda_recorded.Recorded | None,
) -> list[Tensor | None]:
    """As the CPU's; by the graph that belongs to the forward's."""
    if recorded is not None:
        (lease,) = kept
        if (grads := recorded.backward(call, dout, lease)) is not None:
            return grads
        kept = recorded.kept(lease)
    return cpu.backward(call, dout, kept, needs, None)


def _request(call) -> _graphs.Request:
    x, sizes = call.x, sizes_of(call)
    tokens, hidden = sizes["tokens"], sizes["hidden"]
    shape = (sizes["sequences"] if call.first_only else tokens, hidden)
    results = {"out": 0}
    if call.states:
        shape = (call.layers, *shape)
        results = {"out": (call.layers - 1) * x.nbytes, "states": 0}
    fields = {"saved": [], "states": 0, **cpu.fields_of(call, x, sizes)}
    given = {name: getattr(call, name) for name in ("x", "cu_seqlens")}
    inputs = {name: _graphs.Input(tuple(t.shape), t.dtype, t) for name, t in given.items()}
    for name in (*inputs, *results):
        fields.pop(name, None)
    return _graphs.Request("encoder_fwd", x, tokens, fields, inputs, shape, results)
