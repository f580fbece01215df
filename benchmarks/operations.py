"""What the benchmarks of single operations share: inputs, contenders, the check before the race.

`eager` is what transformers' BERT computes: the same modules' arithmetic, on the padded batch where the case is
ragged, as transformers has no other. `sdpa` (attention only) is torch's fused attention on that batch, with its mask.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import harness
from bertfast import dispatch
from harness import formulas

from .race import RACES, Race, report

BUDGET = 1.2  # seconds of counted rounds of one race


def parameters(operation: str) -> pytest.MarkDecorator:
    """One test a (case, contender)."""
    names = ["bertfast", "eager"] + (["sdpa"] if operation == "attention" else [])
    rows = [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in harness.timed_cases(operation)
        for name in names
    ]
    return pytest.mark.parametrize(("case", "name"), rows)


def run(
    benchmark, operation: str, case: harness.Case, name: str, flops: Callable[[harness.Case], float]
) -> None:
    """The row of `name`; the first row of a case runs its race."""
    group = f"{operation} {case.name}"
    if group not in RACES:
        race = Race(group, case.tokens, flops(case), baseline="eager")
        with torch.no_grad():
            _run_race(race, operation, case)
        RACES[group] = race
    report(benchmark, RACES[group], name)


def _run_race(race: Race, operation: str, case: harness.Case) -> None:
    inputs = harness.make_inputs(operation, case, torch.float32)

    def ours() -> Tensor:
        return harness.public(operation)(**inputs)

    with dispatch.use_backend("cpu"):
        _compare(race.group, ours(), getattr(formulas, operation)(**inputs)[0])
        race.run({"bertfast": ours, **peers(operation, case, inputs)}, BUDGET)


def _compare(group: str, ours: Tensor, torchs: Tensor) -> None:
    """Both sides round in fp32, in another order (the parity tests hold the backend to a stricter rule)."""
    difference = (ours - torchs).abs().max() / torchs.abs().max()
    assert difference < 1e-5, (
        f"{group}: bertfast differs from torch by {difference:.2g} of the largest value"
    )


def peers(operation: str, case: harness.Case, inputs: dict) -> dict[str, Callable[[], Tensor]]:
    """transformers' arithmetic on the padded batch, by name."""
    if operation == "attention":
        return _attention_peers(case, inputs)
    wide = _padded(case, inputs)
    formula = getattr(formulas, f"{operation}")
    if operation == "masked_cross_entropy":
        return {
            "eager": lambda: F.cross_entropy(
                F.linear(wide["x"], wide["weight"], wide["bias"]), wide["labels"]
            )
        }
    if operation == "linear_gelu":
        return {"eager": lambda: F.gelu(F.linear(wide["x"], wide["weight"], wide["bias"]))}
    if operation == "qkv_projection":
        return {"eager": lambda: [F.linear(wide["x"], wide[f"w{n}"], wide[f"b{n}"]) for n in "qkv"]}
    return {"eager": lambda: formula(**wide)[0]}


def _padded(case: harness.Case, inputs: dict) -> dict:
    """The inputs with every per-token tensor spread over [B·S] rows; padding repeats row 0 (labels: -100)."""
    index = _padding_index(case)
    padded = {}
    for name, value in inputs.items():
        per_token = isinstance(value, Tensor) and value.ndim and value.shape[0] == case.tokens
        padded[name] = (
            value[index.clamp(min=0)] if per_token and name not in ("word", "weight") else value
        )
    if "labels" in padded:
        padded["labels"][index < 0] = -100
    return padded


def _padding_index(case: harness.Case) -> Tensor:
    """For every cell of the padded batch its token, or -1."""
    longest, start = max(case.lengths), 0
    index = torch.full((len(case.lengths), longest), -1)
    for row, length in enumerate(case.lengths):
        index[row, :length] = torch.arange(start, start + length)
        start += length
    return index.flatten()


def _attention_peers(case: harness.Case, inputs: dict) -> dict[str, Callable[[], Tensor]]:
    index, rows = _padding_index(case), len(case.lengths)
    qkv = inputs["qkv"][index.clamp(min=0)].view(rows, -1, 3, *inputs["qkv"].shape[2:])
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B,h,S,d] each, strided as transformers' are
    real = (index >= 0).view(rows, 1, 1, -1)
    ragged = len(set(case.lengths)) > 1
    additive = (
        torch.zeros(real.shape).masked_fill(~real, torch.finfo(torch.float32).min)
        if ragged
        else None
    )
    mask = real.expand(rows, 1, qkv.shape[1], -1) if ragged else None

    def eager() -> Tensor:
        logits = query @ key.transpose(2, 3) * inputs["scale"]
        logits = logits if additive is None else logits + additive
        return (F.softmax(logits, dim=-1) @ value).transpose(1, 2).flatten(2)

    def sdpa() -> Tensor:
        return (
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            .transpose(1, 2)
            .flatten(2)
        )

    return {"eager": eager, "sdpa": sdpa}
