"""The launches of `padded_encoder`: by a graph where one was recorded (csrc/encoder/padded.h)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import extension
from .. import _graphs
from .._native import dropout
from . import cpu

_KERNEL = "padded_encoder_fwd"
_VECTOR = 16  # bytes that are written at once


def is_recorded(places: int) -> bool:
    """Whether some graph is of a padded batch with so many places."""
    return _graphs.holds(_KERNEL, places)


def is_capturing(x: Tensor) -> bool:
    """Whether somebody records what goes to the current stream of the GPU of x."""
    with extension.current_stream(x.device) as stream:
        return extension.cuda is not None and extension.cuda.is_capturing(stream)


def forward(
    tokens: Any, tables: Any, call: Any, only_recorded: bool = False
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """See `padded_encoder`; with only_recorded None where no graph was recorded of this very call."""
    request = _request(tokens, tables, call)
    found = _graphs.replayed(request)
    if found is None and only_recorded:
        return None
    if found is None:
        found = _launched(request)
    (batch, length), hidden = tokens.input_ids.shape, call.x.shape[1]
    starts, out, first = _places(call, batch, length)
    cu_seqlens = found[:starts].view(torch.int32)[: batch + 1]
    rows = None if call.first_only else found[starts:out].view(batch, length, hidden)
    return rows, found[out:first].view(batch, hidden), cu_seqlens


def _places(call: Any, batch: int, length: int) -> tuple[int, int, int]:
    """Where in the result end cu_seqlens, the rows of all places, and first rows; in elements."""
    size, hidden = call.x.element_size(), call.x.shape[1]
    starts = math.ceil(4 * (batch + 1) / _VECTOR) * _VECTOR // size
    out = starts + (0 if call.first_only else batch * length * hidden)
    return starts, out, out + batch * hidden


def _request(tokens: Any, tables: Any, call: Any) -> _graphs.Request:
    x, (batch, length) = call.x, tokens.input_ids.shape
    starts, out, total = _places(call, batch, length)
    results = {"cu_seqlens": 0, "first": out * x.element_size()}
    if not call.first_only:
        results["out"] = starts * x.element_size()
    shape, mask, segments = (batch, length), tokens.attention_mask, tokens.token_type_ids
    inputs = {
        "input_ids": _graphs.Input(shape, torch.int64, tokens.input_ids),
        "mask": _graphs.Input(shape, torch.bool, 1 if mask is None else mask),
        "token_type_ids": _graphs.Input(shape, torch.int64, 0 if segments is None else segments),
    }
    if tokens.position_ids is not None:
        inputs["position_ids"] = _graphs.Input(shape, torch.int64, tokens.position_ids)
    fields = {
        "batch": batch, "length": length, "position_ids": 0, "out": 0,
        "embedding": {**_embedding(tables), **_inside(x)}, "encoder": {**_layers(call), **_inside(x)},
    }  # fmt: skip
    for name in (*inputs, *results):
        fields.pop(name, None)
    return _graphs.Request(_KERNEL, x, batch * length, fields, inputs, (total,), results)


def _launched(request: _graphs.Request) -> Tensor:
    """The result without a graph, from inputs where they lie; of one number the kernel needs none."""
    found = request.like.new_empty(request.shape)
    base = found.data_ptr()
    places = {name: base + place for name, place in request.results.items()}
    given = {
        name: None if isinstance(value, int) else value.to(dtype).expand(shape).contiguous()
        for name, (shape, dtype, value) in request.inputs.items()
    }
    inputs = dict(zip(given, extension.pointers(list(given.values())), strict=True))
    extension.launch(request.name, request.like, **request.fields, **places, **inputs)
    return found


def _embedding(tables: Any) -> dict[str, Any]:
    word, position, segment, ln_weight, ln_bias, eps = tables
    return {
        "word": word.data_ptr(), "position": position.data_ptr(), "segment": segment.data_ptr(),
        "ln_weight": ln_weight.data_ptr(), "ln_bias": ln_bias.data_ptr(), "eps": eps, "n": word.shape[1],
        "word_stride": word.stride(0), "table_rows": [word.shape[0], position.shape[0], segment.shape[0]],
        "dropout": dropout(0.0, None, None),
        **dict.fromkeys(("input_ids", "position_ids", "segment_ids", "rows", "cu_seqlens", "sequences"), 0),
        **dict.fromkeys(("out", "mean", "rstd"), 0),
    }  # fmt: skip


def _layers(call: Any) -> dict[str, Any]:
    fields = cpu.fields_of(call, call.x, cpu.sizes_of(call))
    unset = dict.fromkeys(("x", "cu_seqlens", "out", "states"), 0)
    return {**fields, **unset, "saved": []}


def _inside(x: Tensor) -> dict[str, Any]:
    """The fields of BF_WHERE for a call inside a call."""
    return {"dtype": extension.DTYPE_CODES[x.dtype], "threads": 1, "gpu": None}
