"""Checks of arguments: cheap where all is well, a message that names the argument where not."""

from __future__ import annotations

from operator import sub

import torch
from torch import Tensor

from .. import extension
from ..errors import ArgumentError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)


def check_like(
    like_name: str, like: Tensor, *expected: tuple[str, Tensor, tuple[int, ...]]
) -> None:
    """Each (name, tensor, shape) has that shape, and the dtype and device of `like`, else ArgumentError.

    A kept weight (_weights.KeptParameter, on the meta device) may stand where `like` is on the CPU.
    """
    dtype, device = like.dtype, like.device
    for name, tensor, shape in expected:
        if tensor.shape != shape or tensor.dtype is not dtype:
            _refuse(like_name, like, name, tensor, shape)
        if tensor.device != device and not hasattr(type(tensor), "unpack"):
            _refuse(like_name, like, name, tensor, shape)


def check_beside(x: Tensor, *expected: tuple[str, Tensor, tuple[int, ...]]) -> None:
    """What LN takes besides a product of x: as `check_like`, but in one dtype of their own, that of
    x or float32 where x is narrower.
    """
    name, first, _ = expected[0]
    if x.dtype not in _HALVES or first.dtype is not torch.float32:
        check_like("x", x, *expected)
        return
    if first.device != x.device:
        raise ArgumentError(name, f"device {x.device} as x", f"device {first.device}")
    check_like(name, first, *expected)


def check_matrix(name: str, tensor: Tensor, ndim: int = 2) -> None:
    """A floating-point tensor of that many dimensions, else ArgumentError."""
    if tensor.ndim != ndim:
        raise ArgumentError(name, f"{ndim} dimensions", f"shape {list(tensor.shape)}")
    if tensor.dtype not in FLOATS:
        raise ArgumentError(name, "float32, bfloat16, float16 or float64", str(tensor.dtype))


def _refuse(
    like_name: str, like: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...]
) -> None:
    if tensor.dtype is not like.dtype:
        expected = f"{like.dtype} as {like_name}"
        raise ArgumentError(name, expected, str(tensor.dtype), "Convert one of them.")
    if tensor.shape != shape:
        raise ArgumentError(name, f"shape {list(shape)}", f"shape {list(tensor.shape)}")
    raise ArgumentError(name, f"device {like.device} as {like_name}", f"device {tensor.device}")


def check_indices(
    name: str,
    indices: Tensor,
    count: int,
    below: int,
    device: torch.device,
    besides: int | None = None,
) -> None:
    """int64 indices [count] on `device`; on the CPU each in [0, below), or equal to `besides`. Else ArgumentError.

    One pass over the indices; on another device the values are not read (that would stall it).
    """
    if indices.dtype is not torch.int64:
        raise ArgumentError(name, "int64", str(indices.dtype))
    if indices.shape != (count,):
        raise ArgumentError(name, f"shape [{count}]", f"shape {list(indices.shape)}")
    if indices.device != device:
        raise ArgumentError(name, f"device {device}", f"device {indices.device}")
    if not indices.is_cpu or count == 0:
        return
    if _all_inside(indices, below):
        return
    outside = (indices < 0) | (indices >= below)
    wrong = (outside if besides is None else outside & (indices != besides)).nonzero()
    if len(wrong):
        place = wrong[0].item()
        expected = f"values in [0, {below})" + ("" if besides is None else f" or {besides}")
        raise ArgumentError(name, expected, f"{indices[place].item()} at index {place}")


def _all_inside(indices: Tensor, below: int) -> bool:
    if extension.cpu is not None and indices.is_contiguous():
        return extension.cpu.all_inside(indices.data_ptr(), indices.shape[0], below)
    low, high = torch.aminmax(indices)
    return low.item() >= 0 and high.item() < below


def check_sequences(
    cu_seqlens: Tensor | None, tokens: int, device: torch.device, max_seqlen: int | None = None
) -> None:
    """cu_seqlens int32 [B+1] on `device`; on the CPU it starts at 0, never falls and ends at no more than `tokens`.

    Raises ArgumentError, also where a sequence is longer than max_seqlen.
    """
    if cu_seqlens is None:
        expected = "the starts of the sequences (dropout counts inside them)"
        raise ArgumentError("cu_seqlens", expected, "None")
    if cu_seqlens.dtype is not torch.int32 or cu_seqlens.ndim != 1 or cu_seqlens.device != device:
        got = f"{cu_seqlens.dtype} {list(cu_seqlens.shape)} on {cu_seqlens.device}"
        raise ArgumentError("cu_seqlens", f"torch.int32 [B+1] on {device}", got)
    if not cu_seqlens.is_cpu:
        return
    starts = cu_seqlens.tolist()
    if not starts or starts[0] != 0 or starts[-1] > tokens or starts != sorted(starts):
        expected = (
            f"starts that begin at 0, never fall and end at no more than {tokens} (the tokens)"
        )
        raise ArgumentError("cu_seqlens", expected, _excerpt(starts))
    if max_seqlen is None:
        return
    longest = max(map(sub, starts[1:], starts), default=0)
    if longest > max_seqlen:
        expected = f"at least {longest}, the longest sequence"
        raise ArgumentError("max_seqlen", expected, str(max_seqlen))


def check_dropout(
    p: float, seed: Tensor | None, device: torch.device, shape: tuple[int, ...] = (1,)
) -> None:
    """p in [0, 1], and where it is not 0 a seed int64 of that shape on `device`, else ArgumentError."""
    if p == 0:
        return
    if not 0 <= p <= 1:
        raise ArgumentError("p", "a probability in [0, 1]", str(p))
    if (
        seed is None
        or seed.dtype is not torch.int64
        or seed.shape != shape
        or seed.device != device
    ):
        got = "None" if seed is None else f"{seed.dtype} {list(seed.shape)} on {seed.device}"
        raise ArgumentError("seed", f"torch.int64 {list(shape)} on {device} where p > 0", got)


def check_example_ids(example_ids: Tensor | None, cu_seqlens: Tensor) -> None:
    """None, or int64 [B] on the device of cu_seqlens [B+1], else ArgumentError."""
    if example_ids is None:
        return
    shape, device = (cu_seqlens.shape[0] - 1,), cu_seqlens.device
    if (
        example_ids.dtype is not torch.int64
        or example_ids.shape != shape
        or example_ids.device != device
    ):
        expected = f"None or torch.int64 {list(shape)} on {device}, an id for each sequence"
        got = f"{example_ids.dtype} {list(example_ids.shape)} on {example_ids.device}"
        raise ArgumentError("example_ids", expected, got)


def _excerpt(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"{values[:4]} ... {values[-4:]}"
