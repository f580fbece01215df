"""The C++ backend of this operation. What allocates and launches serves the CUDA backend too."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ... import extension
from .._native import dropout
from .._quantized import QuantizedParameter
from .._weights import KeptParameter, PrepackedParameter

PRODUCTS = 6  # of a layer's tensors
_ALIGNED = 8  # elements: 16 bytes at least, as kernels read and write at once
_PIECE = 1 << 20  # bytes; smaller tensors share memory


def supports(call) -> str | None:
    """None where the C++ backend computes this call, else the reason."""
    return extension.refuses(call.x) or odd(call)


def odd(call) -> str | None:
    """Why the layers' tensors are none that C++ can be given, or None.

    Addresses go to C++, and a weight may have become another tensor since the last call: each is looked at, in few
    passes over all.
    """
    x, weights, layers = call.x, call.weights, call.layers
    if not layers or not x.shape[0]:
        return "no layers" if x.shape[0] else "no tokens"
    if call.first_only and call.states:
        return "every layer's output is wanted, of the last one first rows only"
    products, vectors = weights[: PRODUCTS * layers], weights[PRODUCTS * layers :]
    kinds, read = set(map(type, products)), [*products, *vectors]
    if any(issubclass(kind, KeptParameter) for kind in kinds):
        if extension.on_gpu(x):
            return "some weights are prepacked or quantized, which is the cpu backend's"
        if len(kinds) > 1:
            return "some weights are prepacked or quantized, others are not in the same way"
        if QuantizedParameter in kinds and not _share_columns(products, layers):
            return "query, key and value were quantized apart"
        kept, read = [weight.packed for weight in products], vectors
        shapes = [(weight.n, weight.k) for weight in kept]
        dtypes = {weight.dtype for weight in kept}
    else:
        shapes, dtypes = [weight.shape for weight in products], set()
    hidden, width, inner = x.shape[1], shapes[0][0], shapes[4 * layers][0]
    rows = ((width, hidden),) * 3 + ((hidden, width), (inner, hidden), (hidden, inner))
    sizes = (width,) * 3 + (hidden, inner) + (hidden,) * 5
    alike = (
        shapes == [row for row in rows for _ in range(layers)]
        and list(map(Tensor.numel, vectors)) == [size for size in sizes for _ in range(layers)]
        and width % call.num_heads == 0
    )
    if not alike:
        return "its layers are not alike"
    if {tensor.dtype for tensor in read} | dtypes != {x.dtype}:
        return "its weights are not in one dtype"
    if not all(map(Tensor.is_contiguous, read)):
        return "a weight is not contiguous"
    alike = {tensor.is_cpu for tensor in read} == {x.is_cpu}
    if alike and not x.is_cpu:
        alike = set(map(Tensor.get_device, read)) == {x.get_device()}
    return None if alike else "a weight is on another device"


def forward(call) -> tuple[Tensor, Tensor | None]:
    """See `bertfast.ops.encoder`; without a gradient. The call's tensors are contiguous, here and below."""
    x, sizes, first_only = call.x, sizes_of(call), call.first_only
    kept = x.new_empty(call.layers, *x.shape) if call.states else None
    rows = sizes["sequences"] if first_only else sizes["tokens"]
    out = x.new_empty(rows, sizes["hidden"]) if kept is None else kept[-1]
    fields = fields_of(call, x, sizes)
    extension.launch(
        "encoder_fwd", x, **fields, saved=[], out=out.data_ptr(), states=extension.pointer(kept)
    )
    return out, kept


def forward_saving(call, needs: Sequence[bool]) -> tuple[Tensor, list[Tensor], None]:
    """The result, the memory in which lies what `backward` needs, and what else it is to be given.

    Args:
        needs: which gradients will be wanted, of x, then of each weight.
    """
    x, sizes = call.x, sizes_of(call)
    out = x.new_empty(sizes["sequences"] if call.first_only else sizes["tokens"], sizes["hidden"])
    kept = [x.new_empty(size, dtype=torch.uint8) for size in kept_bytes(call)]
    extension.launch("encoder_fwd", x, **forward_fields(call, out, kept))
    return out, kept, None


def backward(
    call, dout: Tensor, kept: Sequence[Tensor], needs: Sequence[bool], recorded: None
) -> list[Tensor | None]:
    """Gradients of x and of the weights, None where not needed.

    Args:
        call: as in the forward; of its weights those that only a forward reads may be None.
        kept, recorded: as `forward_saving` gave them. needs: as there.
    """
    x, dout = call.x, dout.contiguous()
    dx = torch.empty_like(x) if needs[0] else None
    grads = [dx, *_gradients(x, call.layers, sizes_of(call), needs[1:])]
    extension.launch("encoder_bwd", x, **backward_fields(call, dout, kept, grads))
    return grads


def kept_bytes(call) -> list[int]:
    """Sizes of the memory in which lies what `backward` needs."""
    return [size for plan in _plans(call, sizes_of(call)) for size in plan[0]]


def forward_fields(call, out: Tensor, kept: Sequence[Tensor]) -> dict[str, Any]:
    """What a forward that saves is told."""
    sizes = sizes_of(call)
    saved = _addresses(_plans(call, sizes), kept)
    saved[call.layers - 1] = out.data_ptr()
    fields = fields_of(call, call.x, sizes)
    return {**fields, "saved": saved, "out": out.data_ptr(), "states": 0}


def backward_fields(
    call, dout: Tensor, kept: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> dict[str, Any]:
    """What a backward is told; grads: of x, then of each weight."""
    sizes, (dx, *addresses) = sizes_of(call), extension.pointers(grads)
    return {
        **fields_of(call, call.x, sizes), "saved": _addresses(_plans(call, sizes), kept),
        "dout": dout.data_ptr(), "grads": addresses, "dx": dx,
    }  # fmt: skip


def _gradients(
    x: Tensor, layers: int, sizes: dict[str, int], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Memory for the wanted ones; on a GPU, where an allocation takes longer than a launch, one piece for all."""
    if extension.on_gpu(x):
        flat = x.new_empty(gradient_elements(layers, sizes, needs))
        return gradients_in(flat, layers, sizes, needs)
    shapes = [shape for shape in _shapes(sizes) for _ in range(layers)]
    return [x.new_empty(s) if need else None for s, need in zip(shapes, needs, strict=True)]


def gradient_elements(layers: int, sizes: dict[str, int], needs: Sequence[bool]) -> int:
    """How many elements `gradients_in` wants."""
    wanted = (sum(needs[i : i + layers]) for i in range(0, len(needs), layers))
    return sum(_padded(shape) * count for shape, count in zip(_shapes(sizes), wanted, strict=True))


def gradients_in(
    flat: Tensor, layers: int, sizes: dict[str, int], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted ones as parts of one piece: all layers' first, all layers' second, ..."""
    found: list[Tensor | None] = []
    start = 0
    for which, shape in enumerate(_shapes(sizes)):
        own = needs[which * layers : (which + 1) * layers]
        count, step = math.prod(shape), _padded(shape)
        if all(own) and count == step:  # in few calls of torch
            found += flat[start : start + layers * step].view(layers, *shape).unbind()
            start += layers * step
            continue
        for need in own:
            found.append(flat[start : start + count].view(shape) if need else None)
            start += step * need
    return found


def _padded(shape: tuple[int, ...]) -> int:
    """Elements from one gradient to the next."""
    return math.ceil(math.prod(shape) / _ALIGNED) * _ALIGNED


def sizes_of(call) -> dict[str, int]:
    """By the names of csrc/encoder/op.h."""
    weights, layers, (tokens, hidden) = call.weights, call.layers, call.x.shape
    with torch._C.DisableTorchFunctionSubclass():  # prepacked ones would ask Python
        width, inner = weights[0].shape[0], weights[4 * layers].shape[0]
    return {
        "tokens": tokens, "sequences": call.cu_seqlens.numel() - 1, "layers": layers, "hidden": hidden,
        "inner": inner, "heads": call.num_heads, "head_size": width // call.num_heads,
    }  # fmt: skip


def _shapes(sizes: dict[str, int]) -> list[tuple[int, ...]]:
    """Of a layer's weights."""
    hidden, inner, width = sizes["hidden"], sizes["inner"], sizes["heads"] * sizes["head_size"]
    products = [(width, hidden)] * 3 + [(hidden, width), (inner, hidden), (hidden, inner)]
    return products + [shape[:1] for shape in products] + [(hidden,)] * 4


def fields_of(call, x: Tensor, sizes: dict[str, int]) -> dict[str, Any]:
    """What both directions are told."""
    weights = call.weights
    kind = type(weights[0])
    if issubclass(kind, KeptParameter):
        weights[0].packed.check_variant()
        products = PRODUCTS * call.layers
        weights = [*map(kind.operand, weights[:products]), *weights[products:]]
    drops = [dropout(p, call.seeds, call.example_ids) for p in call.p]
    seeds = [drop["seed"] and drop["seed"] + 8 * i for i, drop in enumerate(drops)]
    drops = [{**drop, "seed": seed} for drop, seed in zip(drops, seeds, strict=True)]
    return {
        **sizes, "x": x.data_ptr(), "weights": extension.pointers(weights), "eps": list(call.eps),
        "cu_seqlens": call.cu_seqlens.data_ptr(), "scale": sizes["head_size"] ** -0.5,
        "prepacked": kind is PrepackedParameter, "int8": kind is QuantizedParameter,
        "attention_dropout": drops[0], "out_dropout": drops[1], "dropout": drops[2],
        "first_only": call.first_only, "recompute": call.recompute, "cublaslt": list(call.cublaslt),
    }  # fmt: skip


Plan = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]


def _plans(call, sizes: dict[str, int]) -> list[Plan]:
    """Where each layer keeps what its backward needs: sizes of its memory, and (which, offset) of each tensor."""
    tokens, sequences = sizes["tokens"], sizes["sequences"]
    hidden, inner, width = sizes["hidden"], sizes["inner"], sizes["heads"] * sizes["head_size"]
    size, piece = call.x.element_size(), sys.maxsize if extension.on_gpu(call.x) else _PIECE
    shared = hidden, inner, width, sizes["heads"], size, call.recompute, piece
    plan = _plan(tokens, tokens, True, *shared)
    last = _plan(tokens, sequences if call.first_only else tokens, False, *shared)
    return [*(plan for _ in range(call.layers - 1)), last]


@functools.lru_cache(maxsize=16)
def _plan(
    tokens: int, rows: int, output: bool, hidden: int, inner: int, width: int, heads: int, size: int, recompute: bool,
    piece: int,
) -> Plan:  # fmt: skip
    """On a CPU large tensors have memory of their own, which malloc then has ready for the next call; others share it.
    On a GPU a layer has one piece: there an allocation takes longer than a launch.
    """
    row = rows * size
    bytes_of = [row * hidden * output, 3 * tokens * width * size, tokens * width * size]
    bytes_of += [4 * heads * tokens, row * hidden, *(row * inner,) * 2, *(row * hidden,) * 2]
    bytes_of += [4 * rows] * 4
    if recompute:
        bytes_of[1:] = [0] * 12
    memory, places = [0], []
    for number in bytes_of:
        if number and memory[-1] and memory[-1] + number > piece:
            memory.append(0)
        places.append((len(memory) - 1, memory[-1]))
        memory[-1] += math.ceil(number / 64) * 64
    return tuple(memory), tuple(places)


def _addresses(plans: Sequence[Plan], kept: Sequence[Tensor]) -> list[int]:
    """Of all layers' first tensors, of all layers' second, ..."""
    starts, found = extension.pointers(kept), []
    for memory, places in plans:
        found.append([starts[which] + offset for which, offset in places])
        starts = starts[len(memory) :]
    return list(chain.from_iterable(zip(*found, strict=True)))


def _share_columns(products: Sequence[QuantizedParameter], layers: int) -> bool:
    """Whether the three weights that read one x have the same outlier columns."""
    query, key, value = (
        [w.packed.columns for w in products[i * layers : (i + 1) * layers]] for i in range(3)
    )
    return all(q is k is v for q, k, v in zip(query, key, value, strict=True))
