"""What every model does: decide which of the ways a call goes, and run the core or transformers' own forward.

A call is (a) fused; (b) fused around modules that stand in the place of a Linear (`fusion.py`); or (c) transformers'
own `forward`, with the reason recorded for `explain` and said once in the log.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import dispatch
from ..core.batch import PackedBatch, all_places, first_rows, take, unpack
from ..core.encode import encode_packed, encode_padded
from ..core.finite import check_output, check_results
from ..core.heads import pool
from ..core.weights import BertWeights, Linear
from ..errors import UnsupportedError
from ..ops._weights import KeptParameter
from . import fusion
from .capture import allowed
from .inputs import INPUTS, STARTS, Checked, check, make_batch, padded_tokens

try:
    from transformers.utils import output_capturing
except ImportError:  # transformers 4
    output_capturing = None
TRANSFORMERS_4 = output_capturing is None
_RECORDED = getattr(output_capturing, "_CAN_RECORD_REGISTRY", None)
_CHOOSES_STATES = hasattr(output_capturing, "selected_hidden_states")

logger = logging.getLogger("bertfast")

_OWN = (
    *STARTS,
    "example_ids",
    "check_finite",
    "output_logits",
    "num_sequences_in_batch",
    "num_choices",
)
# What tokenizers, collators and Trainer pass along, and what only decoders look at; nothing of it changes an encoder.
_IGNORED = frozenset(
    ("cache_position", "length", "num_items_in_batch", "offset_mapping", "output_cross_attentions")
) | {"overflow_to_sample_mapping", "seq_idx", "special_tokens_mask", "use_cache"}
LABELS = ("labels", "next_sentence_label", "start_positions", "end_positions")
_READ = frozenset((*INPUTS, *_OWN, *LABELS, "output_hidden_states", "return_dict"))
_SAID: set[str] = set()  # reasons that the log has
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


class Encoded(NamedTuple):
    """What the encoder made of a call.

    Fields:
        rows: [T,H], the last layer's output; [B*S,H] where `real` is there; [sequences,H] of first tokens where no more
            was asked for.
        pooled: [sequences,H], or None without a pooler.
        hidden_states: the embeddings' and every layer's output [B,S,H] where asked for, on the gradient's way; or None.
        packed_call: the caller packed the tokens, so the batch is one row [1,total].
        real: [B,S], the attention_mask: rows are those of all places, zeros where it is 0; None: of real tokens alone.
    """

    rows: Tensor
    pooled: Tensor | None
    hidden_states: tuple[Tensor | None, ...] | None
    batch: PackedBatch
    packed_call: bool
    real: Tensor | None = None


def arguments(kind: type[nn.Module], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by transformers' names; those that are None are left out."""
    if args:
        names = _positional(kind)
        if len(args) > len(names):
            raise TypeError(f"forward() takes at most {len(names)} arguments, got {len(args)}")
        twice = kwargs.keys() & set(names[: len(args)])
        if twice:
            raise TypeError(f"forward() got multiple values for argument {min(twice)!r}")
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: value for name, value in kwargs.items() if value is not None}


@functools.cache
def _positional(kind: type[nn.Module]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(kind.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds)[1:]


def signed_as(kind: type[nn.Module], forward: Callable) -> Callable:
    """`forward` with the signature of transformers' class, which Trainer and others read."""

    @functools.wraps(forward)
    def signed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    signed.__signature__ = inspect.signature(kind.forward)
    return signed


def change_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Another class for a live module; transformers 5 knows by the class which outputs of a model it can record."""
    module.__class__ = kind
    recorded = getattr(module, "_can_record_outputs", None)
    if _RECORDED is not None and recorded is not None:
        _RECORDED[module] = recorded


def encode(
    model: nn.Module, given: Mapping[str, Any], first_only: bool = False, padding: bool = False
) -> Encoded | str:
    """The encoder on a call's arguments, or the reason why transformers' own forward has to run.

    Args:
        model: a `BertModel` of bertfast.
        first_only: each sequence's first row is enough.
        padding: rows may be those of padding too, which a GPU gives without telling the host how many are real.

    Raises:
        ArgumentError: an argument is wrong.
    """
    reason = _reason_of_call(given) or _reason_of_moment()
    if reason is not None:
        return reason
    weights = model.view()
    if isinstance(weights, str):
        return weights
    wanted = _wanted_states(model, given, len(weights.layers) + 1)
    if given.get("output_attentions", model.config.output_attentions):
        return "output_attentions needs the matrices"
    fusion.tell(weights)
    checked = check(weights, given)
    states: list[Tensor | None] = []
    looks_at = model if given.get("check_finite") else None
    first_only = first_only and wanted is None
    look = wanted is not None or looks_at is not None
    gradient = torch.no_grad() if _is_kept(weights) else contextlib.nullcontext()
    with gradient, allowed(model):
        if (first_only or padding) and not look:
            found = _without_packing(weights, given, checked, first_only)
            if found is not None:
                return found
        batch = make_batch(weights, given, checked)
        observe = _observer(batch, wanted, states, looks_at) if look else None
        rows = encode_packed(weights, batch, first_only=first_only, observe=observe)
        pooled = _pooled(weights, rows, batch, first_only)
    kept = None if wanted is None else tuple(states)
    return Encoded(rows, pooled, kept, batch, "cu_seq_lens_q" in given)


def _without_packing(
    weights: BertWeights, given: Mapping[str, Any], checked: Checked, first_only: bool
) -> Encoded | None:
    """The encoder on a padded batch whose mask only the GPU reads; None where the batch has to be packed."""
    tokens = padded_tokens(given)
    found = None if tokens is None else encode_padded(weights, tokens, first_only)
    if found is None:
        return None
    out, first, starts = found
    mask, pooled = tokens.attention_mask, None
    if weights.pooler is not None:
        pooled = pool(weights.pooler, first, None if mask is None else starts)
    rows = first if out is None else out.flatten(0, 1)
    batch = all_places(starts, checked.rows, checked.length, given.get("example_ids"))
    return Encoded(rows, pooled, None, batch, False, None if out is None else mask)


def _wanted_states(model: nn.Module, given: Mapping[str, Any], count: int) -> Container[int] | None:
    """Which of `count` hidden states are to be returned (transformers 5.24 lets one choose); None: none are."""
    asked = given.get("output_hidden_states", model.config.output_hidden_states)
    if asked is False or asked is None:
        return None
    if asked is True or not _CHOOSES_STATES:
        return range(count) if asked else None
    some = [asked] if isinstance(asked, int) else asked
    return {index % count for index in some if -count <= index < count}


def _pooled(
    weights: BertWeights, rows: Tensor, batch: PackedBatch, first_only: bool
) -> Tensor | None:
    if weights.pooler is None:
        return None
    if batch.is_dense:  # no sequence is empty
        return pool(weights.pooler, rows if first_only else rows[:: batch.length])
    starts = batch.cu_seqlens
    return pool(weights.pooler, rows if first_only else first_rows(rows, starts), starts)


def _observer(
    batch: PackedBatch,
    wanted: Container[int] | None,
    states: list[Tensor | None],
    looks_at: nn.Module | None,
) -> Callable[[int, Tensor], Tensor]:
    """Keeps hidden states [B,S,H], through which the gradient then goes, and looks for values that are not finite."""
    through = torch.is_grad_enabled()

    def observe(index: int, x: Tensor) -> Tensor:
        if looks_at is not None:
            part = looks_at.encoder.layer[index - 1] if index else looks_at.embeddings
            check_output(f"encoder.layer.{index - 1}" if index else "embeddings", part, x)
        if wanted is not None:
            states.append(unpack(x, batch) if index in wanted else None)
            x = take(states[-1], batch) if through and index in wanted else x
        return x

    return observe


def _reason_of_call(given: Mapping[str, Any]) -> str | None:
    """What in the arguments only transformers' forward does."""
    for name, value in given.items():
        if name not in _READ:
            if value is False or name in _IGNORED:
                continue
            return f"{name} is given"
        if isinstance(value, Tensor) and type(value) not in (Tensor, nn.Parameter):
            return f"{name} is a {type(value).__name__}"
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() > 2:
        return f"attention_mask has {mask.dim()} dimensions"
    return None


def _reason_of_moment() -> str | None:
    """Who watches a call from outside: tracing, export, transforms, modes."""
    if torch.compiler.is_compiling():
        return "the model is exported" if _is_exporting() else None
    if torch.jit.is_tracing():  # torch.onnx.export too
        return "the model is traced"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms it"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch._C._len_torch_dispatch_stack() > 0:
        return "a dispatch mode watches the operations"
    return None


def theirs(model: nn.Module, kind: type[nn.Module], reason: str, given: dict[str, Any]) -> Any:
    """transformers' own forward, recorded and said once."""
    if not torch.compiler.is_compiling():
        name = type(model).__name__
        dispatch.note(name, "forward", "transformers", {"fused": reason})
        if reason not in _SAID:
            _SAID.add(reason)
            logger.warning("%s runs transformers' own forward: %s.", name, reason)
    if "cu_seq_lens_q" in given:
        raise UnsupportedError(
            f"cu_seq_lens_q: a batch packed by the caller runs in bertfast's own forward only, and here {reason}. "
            "Give input_ids and attention_mask [batch, length]."
        )
    if "example_ids" in given:
        raise UnsupportedError(
            "example_ids: dropout counts by them in bertfast's own forward only, and here "
            f"{reason}. Leave them out, or change that."
        )
    output = kind.forward(model, **{k: v for k, v in given.items() if k not in _OWN})
    if given.get("check_finite"):
        named = isinstance(output, Mapping)
        check_results(model, output if named else {f"output {i}": t for i, t in enumerate(output)})
    return output


def finish(model: nn.Module, kind: type, given: Mapping[str, Any], **fields: Any) -> Any:
    """The output of a call, or its tuple; with check_finite, an error that names what is not finite."""
    if given.get("check_finite"):
        check_results(model, fields)
    output, held = kind(**fields), model.config.__dict__
    default = held.get("return_dict", True) and not held.get("torchscript", False)
    return output if given.get("return_dict", default) else output.to_tuple()


def _is_kept(weights: BertWeights) -> bool:
    query = getattr(weights.layers[0], "query", None) if len(weights.layers) else None
    return isinstance(query, Linear) and isinstance(query.weight, KeptParameter)
