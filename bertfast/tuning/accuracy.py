"""The accuracy check of a backend: the rule that tests hold backends to, and that measuring asks first.

Accuracy check. Against the same formula in float64, a backend may err at most twice as much as plain
torch does in the same dtype (its largest error over the tensor) + 8 eps S in every element, where S
is the largest size of the element's row (the formula on absolute values, `bounds`), and 1.5 times
torch's root mean square error over the n elements that have terms at all (S > 0: not the rows of a
table that no token looks up). The latter has an allowance of 8 eps rms(S) / √n: torch may be exact
by luck where there are few.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Expected(NamedTuple):
    """One tensor in float64, plain torch's in the dtype under test, and the size of its terms."""

    truth: Tensor
    torch: Tensor
    size: Tensor


def compare(label: str, got: Tensor, expected: Expected) -> None:
    """Apply the accuracy check; raises AssertionError with the largest error, its index and both
    values.
    """
    truth, baseline, size = expected
    assert got.shape == truth.shape, (
        f"{label}: shape {list(got.shape)}, expected {list(truth.shape)}"
    )
    if truth.numel() == 0:
        return
    eps = torch.finfo(baseline.dtype).eps
    got = got.to(truth.device, torch.float64)
    error, torch_error = (got - truth).abs(), (baseline.double() - truth).abs()
    error = error.nan_to_num(nan=torch.inf)
    rows = size.reshape(-1, size.shape[-1]) if size.ndim else size.reshape(1, 1)
    allowed = (
        (2 * torch_error.max() + 8 * eps * rows.amax(1, keepdim=True))
        .expand_as(rows)
        .reshape(truth.shape)
    )
    place = int((error - allowed).argmax())
    index = list(torch.unravel_index(torch.tensor(place), truth.shape)) if truth.ndim else []
    where = f"{[int(i) for i in index]}: got {got.flatten()[place]:.9g}, expected {truth.flatten()[place]:.9g}"
    n = (size > 0).sum().clamp(min=1)  # elsewhere S and the error of torch are 0
    rms, torch_rms, rms_size = ((t.square().sum() / n).sqrt() for t in (error, torch_error, size))
    limit = 1.5 * torch_rms + 8 * eps * rms_size / n.sqrt()
    found = f"error {error.flatten()[place]:.3g} at {where}; {allowed.flatten()[place]:.3g} is allowed there"
    found += f" (torch's largest {torch_error.max():.3g}). RMS error {rms:.3g}, allowed {limit:.3g}"
    assert (error <= allowed).all(), f"{label}: {found}"
    assert rms <= limit, f"{label}: RMS: {found}"
