"""What decides the speed of a call on a GPU: its key in a tuning table."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from .. import extension

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COUNTED = ("x", "qkv", "position_ids")  # the argument with a row a token
_SIZES = ("weight", "wq", "word")  # those whose shapes tell the work of a token


class Key(NamedTuple):
    """Calls with equal keys share one decision.

    Fields:
        dtype: of the product, "tf32" for float32 that may be rounded; ln_dtype: of LN's parameters, if there are any.
        tokens, longest: the least powers of two not below the tokens and `max_seqlen` (0 where there is none).
        features: the shape of one token's row. sizes: of the weight that tells the work. dropout: p > 0.
        wanted: what is saved, or which gradients.
    """

    operation: str
    direction: str
    dtype: str
    ln_dtype: str
    tokens: int
    longest: int
    features: tuple[int, ...]
    sizes: tuple[int, ...]
    dropout: bool
    wanted: Any

    def text(self) -> str:
        """The key in a table: one line, the same in every process."""
        shapes = ["x".join(map(str, shape)) for shape in (self.features, self.sizes) if shape]
        dtype = "+".join(dict.fromkeys(filter(None, (self.dtype, self.ln_dtype))))
        wanted = self.wanted
        if isinstance(wanted, tuple):
            wanted = "".join("01"[want] for want in wanted)
        sizes = (f"tokens={self.tokens}", f"longest={self.longest}", *shapes)
        rest = (f"dropout={self.dropout:d}", f"wanted={wanted}")
        return " ".join((self.operation, self.direction, dtype, *sizes, *rest))


class _Fields(NamedTuple):
    """The names of the telling arguments of a kind of call; empty where it has no such argument."""

    counted: str
    sizes: tuple[str, ...]
    ln: str
    longest: str
    p: str
    wanted: str


@functools.cache
def _fields(kind: type) -> _Fields:
    given = kind._fields
    counted = next(name for name in _COUNTED if name in given)
    sizes = tuple(name for name in _SIZES if name in given)
    ln, longest, p = (name if name in given else "" for name in ("ln_weight", "max_seqlen", "p"))
    wanted = given[-1] if given[-1] in ("save", "needs") else ""
    return _Fields(counted, sizes, ln, longest, p, wanted)


def key_of(call: tuple) -> Key | None:
    """The key of a call; None where no table decides: a dtype without kernels, or no tokens."""
    fields, lead = _fields(type(call)), call.lead
    tokens = getattr(call, fields.counted).shape[0]
    if tokens == 0 or lead.dtype not in DTYPES:
        return None
    tf32 = lead.dtype == torch.float32 and extension.allows_tf32()
    sizes = ()
    for name in fields.sizes:
        weight = getattr(call, name)
        sizes += () if weight is None else tuple(weight.shape)
    longest = getattr(call, fields.longest) if fields.longest else 0
    wanted = getattr(call, fields.wanted) if fields.wanted else None
    return Key(
        call.operation,
        call.direction,
        "tf32" if tf32 else _name(lead.dtype),
        _name(getattr(call, fields.ln).dtype) if fields.ln else "",
        1 << (tokens - 1).bit_length(),
        1 << (longest - 1).bit_length() if longest > 0 else 0,
        tuple(lead.shape[1:]),
        sizes,
        bool(fields.p) and getattr(call, fields.p) > 0,
        tuple(wanted) if isinstance(wanted, list) else wanted,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
