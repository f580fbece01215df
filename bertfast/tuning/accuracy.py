"""The accuracy check: what tests hold a backend to, and what `bertfast tune` asks before it measures.

The error is against the same formula in float64. Its tolerance in every element is twice the largest error of eager
torch in the same dtype, + 8 eps S, where S is the largest size of the element's row (the formula on absolute values,
`bounds`). The root mean square of the errors of the n elements that have terms at all (S > 0: not the rows of a table
that no token looks up) is at most 1.5 times that of eager torch, + 8 eps rms(S) / √n: torch may be exact by luck where
there are few. Where elements share roundings, n is how many there are that do not. Both grow by the dtype's smallest
step, which for float16 is 6e-8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Expected(NamedTuple):
    """One tensor in float64, that of eager torch in the dtype under test, and the size of its terms."""

    exact: Tensor
    eager: Tensor
    size: Tensor


def compare(label: str, got: Tensor, expected: Expected, samples: int | None = None) -> None:
    """Apply the accuracy check; raises AssertionError with the largest error, its index and both values.

    Args:
        samples: how many errors are independent of each other; all of them where it is None.
    """
    exact, eager, size = expected
    shapes = f"shape {list(got.shape)}, expected {list(exact.shape)}"
    assert got.shape == exact.shape, f"{label}: {shapes}"
    if exact.numel() == 0:
        return
    eps = torch.finfo(eager.dtype).eps
    step = torch.finfo(eager.dtype).smallest_normal * eps
    got = got.to(exact.device, torch.float64)
    error, eager_error = (got - exact).abs(), (eager.double() - exact).abs()
    error = error.nan_to_num(nan=torch.inf)
    rows = size.reshape(-1, size.shape[-1]) if size.ndim else size.reshape(1, 1)
    allowed = 2 * eager_error.max() + 8 * eps * rows.amax(1, keepdim=True) + step
    allowed = allowed.expand_as(rows).reshape(exact.shape)
    place = int((error - allowed).argmax())
    index = list(torch.unravel_index(torch.tensor(place), exact.shape)) if exact.ndim else []
    where = f"{[int(i) for i in index]}: got {got.flatten()[place]:.9g}, expected {exact.flatten()[place]:.9g}"
    n = (size > 0).sum().clamp(min=1)  # elsewhere S and the error of torch are 0
    rms, eager_rms, rms_size = ((t.square().sum() / n).sqrt() for t in (error, eager_error, size))
    limit = 1.5 * eager_rms + 8 * eps * rms_size / (samples or n) ** 0.5 + step
    found = f"error {error.flatten()[place]:.3g} at {where}; {allowed.flatten()[place]:.3g} is allowed there"
    found += f" (eager torch's largest {eager_error.max():.3g}). RMS error {rms:.3g}, allowed {limit:.3g}"
    assert (error <= allowed).all(), f"{label}: {found}"
    assert rms <= limit, f"{label}: RMS: {found}"
