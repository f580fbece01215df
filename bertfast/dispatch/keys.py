"""What a measurement holds for: the key of a call, and its mark, which is cheap: every call in eager mode makes one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

MEASURED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LEADS = ("x", "qkv", "position")  # the argument whose dtype and device are the operation's
_COUNTED = ("x", "qkv", "position_ids")  # the one with a row a token
_SIZES = ("weight", "wq", "word")  # those whose shapes tell the work of a token
_CONDITIONS: list[Callable[[], bool]] = []


class Key(NamedTuple):
    """Calls with equal keys share one measurement.

    Fields:
        ln_dtype: of LN's parameters, and of what stands beside the product; None where there is no LN.
        tokens, longest: the least powers of two not below the tokens and `max_seqlen` (0 where there is none).
        features: the shape of one token's row. sizes: of the weight that tells the work. dropout: p > 0.
        wanted: what is saved, or which gradients. threads: on the CPU. conditions: see `depends_on`.
    """

    operation: str
    direction: str
    dtype: torch.dtype
    ln_dtype: torch.dtype | None
    device: torch.device
    tokens: int
    longest: int
    features: tuple[int, ...]
    sizes: tuple[int, ...]
    dropout: bool
    wanted: Any
    threads: int
    conditions: tuple[bool, ...]

    def text(self) -> str:
        """The key in a table of one device: one line, the same in every process."""
        shapes = ["x".join(map(str, shape)) for shape in (self.features, self.sizes) if shape]
        dtypes = dict.fromkeys((self.dtype, self.ln_dtype or self.dtype))
        dtype = "+".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        wanted = self.wanted
        if isinstance(wanted, tuple):
            wanted = "".join("01"[want] for want in wanted)
        return " ".join(
            (
                *(self.operation, self.direction, dtype),
                *(f"tokens={self.tokens}", f"longest={self.longest}", *shapes),
                *(f"dropout={self.dropout:d}", f"wanted={wanted}", f"threads={self.threads}"),
                *(f"{condition:d}" for condition in self.conditions),
            )
        )


class _Places(NamedTuple):
    """Positions of the telling arguments of an op; -1 where it has no such argument."""

    lead: int
    ln: int
    counted: int
    sizes: tuple[int, ...]
    longest: int
    p: int
    wanted: int


def depends_on(condition: Callable[[], bool]) -> None:
    """Measure anew where `condition()` differs: what changes the speed of the cpu form besides its arguments."""
    _CONDITIONS.append(condition)


@functools.cache
def names(operation: str, direction: str) -> tuple[str, ...]:
    """The names of the arguments of a form's function."""
    suffix = {"forward": "fwd", "backward": "bwd"}[direction]
    schema = getattr(torch.ops.bertfast, f"{operation}_{suffix}").default._schema
    return tuple(argument.name for argument in schema.arguments)


@functools.cache
def _places(operation: str, direction: str) -> _Places:
    given = names(operation, direction)
    place = {name: index for index, name in enumerate(given)}
    lead = next(place[name] for name in _LEADS if name in place)
    counted = next(place[name] for name in _COUNTED if name in place)
    sizes = tuple(place[name] for name in _SIZES if name in place)
    wanted = len(given) - 1 if given[-1] in ("save", "needs") else -1
    ln, longest, p = (place.get(name, -1) for name in ("ln_weight", "max_seqlen", "p"))
    return _Places(lead, ln, counted, sizes, longest, p, wanted)


def device_type(operation: str, direction: str, args: tuple) -> str:
    """The type of the device that the arguments lie on."""
    return args[_places(operation, direction).lead].device.type


def mark_of(operation: str, direction: str, args: tuple) -> tuple | None:
    """The fields of the `Key` of a call, as every call makes them; None where nothing is measured."""
    lead_at, ln_at, counted_at, sizes_at, longest_at, p_at, wanted_at = _places(
        operation, direction
    )
    lead = args[lead_at]
    device, dtype = lead.device, lead.dtype
    tokens = args[counted_at].shape[0]
    if tokens == 0 or dtype not in MEASURED_DTYPES:
        return None
    if lead.is_cpu:
        threads, conditions = torch.get_num_threads(), [condition() for condition in _CONDITIONS]
    elif lead.is_cuda:
        threads, conditions = 0, ()
    else:
        return None
    sizes = ()
    for at in sizes_at:
        weight = args[at]
        if weight is not None:
            if weight.is_meta:  # frozen: only the cpu form reads it without unpacking
                return None
            sizes += weight.shape
    wanted = args[wanted_at] if wanted_at >= 0 else None
    return (
        operation,
        direction,
        dtype,
        args[ln_at].dtype if ln_at >= 0 else None,
        device,
        (tokens - 1).bit_length(),
        (args[longest_at] - 1).bit_length() if longest_at >= 0 else None,
        lead.shape[1:],
        sizes,
        p_at >= 0 and args[p_at] > 0,
        tuple(wanted) if type(wanted) is list else wanted,
        threads,
        *conditions,
    )


def key_of(mark: tuple) -> Key:
    """The key that a mark stands for."""
    tokens, longest, features, sizes, *rest = mark[5:]
    longest = 0 if longest is None else 1 << longest
    dropout, wanted, threads, *conditions = rest
    return Key(
        *(*mark[:5], 1 << tokens, longest, tuple(features), tuple(sizes)),
        *(dropout, wanted, threads, tuple(conditions)),
    )
