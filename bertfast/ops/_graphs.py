"""Launches that leave as one: a kernel of `_cuda` that launches many is recorded as a CUDA graph and replayed.

It is recorded when the same call comes the second time on a stream, as a first launch may load code, which a recording
must not. "The same" is all that its launches are told: sizes, options, addresses of the weights. So a weight that lies
elsewhere, by whatever it was moved, is another call, and what is written to it in place is read by the next replay. A
call's inputs and result are copied into and out of an arena, where its workspace is too; the calls of a stream, which
run one after the other, share one.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch, extension
from .._scope import scope

KEPT = 16  # recorded calls
_ALIGNED = 256  # bytes, of every part of an arena

Key = tuple[Any, ...]


class Request(NamedTuple):
    """A launch of the kernel `name`.

    Fields:
        like: tells dtype and device. tokens: those of the call.
        fields: as for `extension.launch`, without the inputs and the result.
        inputs: contiguous tensors by the names of their fields. shape: of the result, in the dtype of `like`.
        results: by the names of its fields the place in the result, in bytes.
    """

    name: str
    like: Tensor
    tokens: int
    fields: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    shape: tuple[int, ...]
    results: Mapping[str, int]


class Arena:
    """Memory for the calls of one stream: as much as the largest of them needs."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None

    def reserve(self, size: int, like: Tensor) -> int:
        """The address of so many bytes. Larger memory lies elsewhere, so what was recorded of the old is let go."""
        if self.memory is None or self.memory.shape[0] < size:
            for key in [key for key, call in _CAPTURED.items() if call.arena is self]:
                del _CAPTURED[key]
                _remember(_SEEN, key, None)
            self.memory = None
            self.memory = like.new_empty(size, dtype=torch.uint8)
        return self.memory.data_ptr()


class Captured:
    """A call's graph, and the places of its inputs and its result in the arena of its stream."""

    def __init__(self, request: Request, stream: int, arena: Arena):
        like = request.like
        count = math.prod(request.shape) * like.element_size()
        sizes = [*(value.nbytes for value in request.inputs.values()), count]
        starts = [0, *accumulate(math.ceil(size / _ALIGNED) * _ALIGNED for size in sizes)]
        fields = {**request.fields, **extension.where(like, stream)}

        def at(base: int) -> dict[str, Any]:
            places = dict(zip(request.inputs, starts, strict=False))
            places |= {name: starts[-2] + place for name, place in request.results.items()}
            found = {name: base + place for name, place in places.items()}
            return {**fields, **found, "gpu": {**fields["gpu"], "workspace": base + starts[-1]}}

        asked = extension.workspace_bytes(request.name, at(_ALIGNED))
        base = arena.reserve(starts[-1] + asked, like)
        self.graph = extension.record(request.name, at(base))
        self.arena, memory = arena, arena.memory
        self.inputs = [
            memory[start : start + value.nbytes].view(value.dtype).view(value.shape)
            for start, value in zip(starts, request.inputs.values(), strict=False)
        ]
        self.result = memory[starts[-2] : starts[-2] + count].view(like.dtype).view(request.shape)

    def __call__(self, request: Request, stream: int) -> Tensor:
        for place, value in zip(self.inputs, request.inputs.values(), strict=True):
            place.copy_(value)
        extension.replay(self.graph, stream)
        return self.result.clone()


_LOCK = threading.Lock()  # of the tables, and from an input's copy to the result's
# calls that came once; or why they are not recorded
_SEEN: OrderedDict[Key, str | None] = OrderedDict()
_CAPTURED: OrderedDict[Key, Captured] = OrderedDict()
_ARENAS: weakref.WeakValueDictionary[tuple, Arena] = weakref.WeakValueDictionary()


def replayed(request: Request) -> Tensor | None:
    """The result by a graph; None where the call is to be launched: the first time, too many tokens, a refusal."""
    most, device = scope().graph_tokens, request.like.device
    if not most:
        return None
    with extension.current_stream(device) as stream:
        if extension.cuda.is_capturing(stream):  # the caller's own graph takes the launches in
            return None
        key = _key(request, stream)
        with _LOCK:
            call = _CAPTURED.get(key)
            if call is None and request.tokens <= most:
                call = _capture(key, request, stream)
            if call is None:
                return None
            _CAPTURED.move_to_end(key)
            result = call(request, stream)
    dispatch.note(request.name.removesuffix("_fwd"), "graph", "cuda", {})
    return result


def forget() -> None:
    """Let go of all graphs and their memory."""
    with _LOCK:
        _SEEN.clear()
        _CAPTURED.clear()


def arenas() -> list[Arena]:
    """Of all streams of which calls are recorded."""
    return list(_ARENAS.values())


def describe() -> list[tuple[torch.device, int, int]]:
    """(device, recorded calls, bytes of their arena) of each stream."""
    with _LOCK:
        used = [call.arena for call in _CAPTURED.values()]
        return [(a.memory.device, used.count(a), a.memory.nbytes) for a in arenas() if a in used]


def _key(request: Request, stream: int) -> Key:
    told = {**request.fields, **extension.where(request.like, stream)}
    shapes = (tuple(value.shape) for value in request.inputs.values())
    return (
        request.name,
        request.like.device,
        *shapes,
        *request.results,
        *map(_frozen, told.values()),
    )


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(value.values())
    return tuple(value) if isinstance(value, list) else value


def _capture(key: Key, request: Request, stream: int) -> Captured | None:
    """The call recorded, if it came before."""
    reason = _SEEN.get(key)
    if key not in _SEEN or reason is not None:
        _remember(_SEEN, key, reason)
    else:
        arena = _ARENAS.setdefault((request.like.device, stream), Arena())
        try:
            with torch.inference_mode(False):  # or no call outside could write to the arena
                call = Captured(request, stream, arena)
            _SEEN.pop(key, None)
            _remember(_CAPTURED, key, call)
            return call
        except RuntimeError as error:  # out of memory, too
            reason = " ".join(str(error).split())
            _remember(_SEEN, key, reason)
    if reason is not None:
        dispatch.note(request.name.removesuffix("_fwd"), "graph", None, {"cuda": reason})
    return None


def _remember(table: OrderedDict, key: Key, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > KEPT:
        table.popitem(last=False)
