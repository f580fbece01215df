"""Launches that leave as one: a kernel of `_cuda` that launches many is recorded as a CUDA graph and replayed.

It is recorded when the same call comes the second time on a stream, as a first launch may load code, which a recording
must not. "The same" is all that its launches are told: sizes, options, addresses of the weights. So a weight that lies
elsewhere, by whatever it was moved, is another call, and what is written to it in place is read by the next replay. A
call's inputs and result are copied into and out of an arena, where its workspace is too; the calls of a stream, which
run one after the other, share one. Training has a second (`encoder/_cuda_recorded.py`).
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch, extension
from .._scope import scope

KEPT = 16  # recorded calls
_OPERATION = "encoder"  # what is recorded, to records of choices
_ALIGNED = 256  # bytes, of every part of an arena

Key = tuple[Any, ...]


class Input(NamedTuple):
    """What a call brings: shape and dtype of its place, and the value, a tensor that broadcasts to it or one number."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Tensor | int


class Request(NamedTuple):
    """A launch of the kernel `name`.

    Fields:
        like: tells dtype and device. tokens: those of the call, or of its places.
        fields: as for `extension.launch`, without the inputs and the result.
        inputs: by the names of their fields. shape: of the result, in the dtype of `like`.
        results: by the names of its fields the place in the result, in bytes.
    """

    name: str
    like: Tensor
    tokens: int
    fields: Mapping[str, Any]
    inputs: Mapping[str, Input]
    shape: tuple[int, ...]
    results: Mapping[str, int]


class Arena:
    """Memory for the calls of one stream: as much as the largest of them needs."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.user: weakref.ref[Tensor] | None = None  # of what a call left there, to be read yet

    def in_use(self) -> bool:
        return self.user is not None and self.user() is not None

    def reserve(self, size: int, like: Tensor) -> int:
        """The address of so many bytes. Larger memory lies elsewhere, so what was recorded of the old is let go."""
        if self.memory is None or self.memory.shape[0] < size:
            for key in [key for key, call in _CAPTURED.items() if call.arena is self]:
                del _CAPTURED[key]
                _remember(_SEEN, key, None)
            self.memory = None
            self.memory = like.new_empty(size, dtype=torch.uint8)
        return self.memory.data_ptr()


def places_of(sizes: Sequence[int]) -> list[int]:
    """Where each of so many bytes begins in an arena, and where what follows them does."""
    return [0, *accumulate(math.ceil(size / _ALIGNED) * _ALIGNED for size in sizes)]


def view_as(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of an arena's memory that begins there, in the dtype and shape of a tensor."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)


class Captured:
    """A call's graph, and the places of its inputs and its result in the arena of its stream."""

    def __init__(self, request: Request, stream: int, arena: Arena):
        like = request.like
        count = math.prod(request.shape) * like.element_size()
        given = [
            torch.empty(shape, dtype=dtype, device="meta")
            for shape, dtype, _ in request.inputs.values()
        ]
        starts = places_of([*(value.nbytes for value in given), count])
        fields = {**request.fields, **extension.where(like, stream)}

        def at(base: int) -> dict[str, Any]:
            places = dict(zip(request.inputs, starts, strict=False))
            places |= {name: starts[-2] + place for name, place in request.results.items()}
            found = {name: base + place for name, place in places.items()}
            return {**fields, **found, "gpu": {**fields["gpu"], "workspace": base + starts[-1]}}

        asked = extension.workspace_bytes(request.name, at(_ALIGNED))
        base = arena.reserve(starts[-1] + asked, like)
        self.graph = extension.record(request.name, at(base))
        self.arena, self.tokens, memory = arena, request.tokens, arena.memory
        self.inputs = [view_as(memory, *place) for place in zip(starts, given, strict=False)]
        self.result = memory[starts[-2] : starts[-2] + count].view(like.dtype).view(request.shape)

    def __call__(self, request: Request, stream: int) -> Tensor:
        for place, (_, _, value) in zip(self.inputs, request.inputs.values(), strict=True):
            place.fill_(value) if isinstance(value, int) else place.copy_(value)
        extension.replay(self.graph, stream)
        return self.result.clone()


Place = tuple[Any, ...]  # of an arena: device, stream, and what else keeps its calls apart
LOCK = threading.Lock()  # of the tables, and from an input's copy to the result's
# calls that came once; or why they are not recorded
_SEEN: OrderedDict[Key, str | None] = OrderedDict()
_CAPTURED: OrderedDict[Key, Any] = OrderedDict()
_ARENAS: weakref.WeakValueDictionary[Place, Arena] = weakref.WeakValueDictionary()


def replayed(request: Request) -> Tensor | None:
    """The result by a graph; None where the call is to be launched: the first time, too many tokens, a refusal."""
    device = request.like.device
    if not scope().graph_tokens:
        return None
    with extension.current_stream(device) as stream:
        if extension.cuda.is_capturing(stream):  # the caller's own graph takes the launches in
            return None
        told = {**request.fields, **extension.where(request.like, stream)}
        places = ((name, *given[:2]) for name, given in request.inputs.items())
        key = key_of(request.name, device, *places, *request.results, *told.values())
        place = (device, stream)
        with LOCK:
            call = find(key, request.tokens, place, partial(Captured, request, stream))
            if call is None:
                return None
            result = call(request, stream)
    dispatch.note(_OPERATION, "graph", "cuda", {})
    return result


def key_of(*told: Any) -> Key:
    """What makes two calls the same: the first is the kernel's name."""
    return tuple(map(_frozen, told))


def find(key: Key, tokens: int, place: Place, make: Callable[[Arena], Any]) -> Any:
    """The recorded call of that key, made now where it comes the second time; or None. For who holds `LOCK`.

    Args:
        tokens: of the call. place: of its arena, which `make` is given. What that makes has it as `arena`.
    """
    call = _CAPTURED.get(key)
    if call is None and tokens <= scope().graph_tokens:
        call = _capture(key, place, make)
    if call is not None:
        _CAPTURED.move_to_end(key)
    return call


def arena_at(place: Place) -> Arena:
    """The arena there; its calls keep it."""
    return _ARENAS.setdefault(place, Arena())


def holds(name: str, tokens: int) -> bool:
    """Whether a call of that kernel with so many tokens is recorded."""
    with LOCK:
        return any(key[0] == name and call.tokens == tokens for key, call in _CAPTURED.items())


def forget() -> None:
    """Let go of all graphs and their memory."""
    with LOCK:
        _SEEN.clear()
        _CAPTURED.clear()


def arenas() -> list[Arena]:
    """Of all calls that are recorded."""
    return list(_ARENAS.values())


def describe() -> list[tuple[torch.device, int, int]]:
    """(device, recorded calls, bytes of their arena) of each arena."""
    with LOCK:
        used = [call.arena for call in _CAPTURED.values()]
        return [(a.memory.device, used.count(a), a.memory.nbytes) for a in arenas() if a in used]


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(map(_frozen, value.values()))
    return tuple(value) if isinstance(value, list) else value


def _capture(key: Key, place: Place, make: Callable[[Arena], Any]) -> Any:
    """The call recorded, if it came before."""
    reason = _SEEN.get(key)
    if key not in _SEEN or reason is not None:
        _remember(_SEEN, key, reason)
    else:
        try:
            with torch.inference_mode(False):  # or no call outside could write to the arena
                call = make(arena_at(place))
            _SEEN.pop(key, None)
            _remember(_CAPTURED, key, call)
            return call
        except RuntimeError as error:  # out of memory, too
            reason = " ".join(str(error).split())
            _remember(_SEEN, key, reason)
    if reason is not None:
        dispatch.note(_OPERATION, "graph", None, {"cuda": reason})
    return None


def _remember(table: OrderedDict, key: Key, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > KEPT:
        table.popitem(last=False)
