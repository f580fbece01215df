"""DDP and FSDP2 on two processes: losses, gradients and weights of one process that has both halves of a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed

from bertfast.explain import table
from harness import near
from models.ecosystem import collate, gradients, in_float64, theirs_of
from models.matrix import way_of
from models.two_processes import CASES, RATE, STEPS, many_texts, rows_of, with_lora

WAYS = {
    "DDP checkpointing": "modules",  # a hook on the word embeddings
    "FSDP2 checkpointing": "modules",
    "DDP LoRA": "modules",
    "FSDP2 LoRA": "modules",
    # the head is transformers', the encoder in it ours
    "FSDP2 encoder too": "transformers",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the two processes wrote, by rank."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    folder = tmp_path_factory.mktemp("distributed")
    script = Path(__file__).with_name("two_processes.py")
    run = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def single(name: str, lora: bool, exact: bool) -> list[dict]:
    """transformers' class in one process, in float64 where `exact`: by rank {losses, gradients, weights}."""
    model = theirs_of(name).train()
    model = with_lora(model) if lora else model
    model = in_float64(model) if exact else model
    optimizer, losses = torch.optim.SGD(model.parameters(), RATE), [[], []]
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in (0, 1):
            loss = model(**collate(rows_of(name, step, rank))).loss
            (loss / 2).backward()
            losses[rank].append(loss.detach())
        optimizer.step()
    learnt = {"gradients": gradients(model), "weights": dict(model.named_parameters())}
    return [{"losses": torch.stack(part), **learnt} for part in losses]


@pytest.fixture(scope="module")
def wanted():
    """By class, LoRA or not, and rank: (exact, eager)."""
    kinds = {(row[0], "LoRA" in case) for case, row in CASES.items()}
    runs = {kind: (single(*kind, exact=True), single(*kind, exact=False)) for kind in kinds}
    return {kind: list(zip(*both, strict=True)) for kind, both in runs.items()}


@pytest.mark.tool("torch distributed", "{case}: losses, gradients and weights of one process")
@pytest.mark.parametrize("case", [case for case in CASES if "bf16" not in case])
def test_parity(case, found, wanted, request):
    by_rank = wanted[CASES[case][0], "LoRA" in case]
    for results, (exact, eager) in zip(found, by_rank, strict=True):
        got = results[case]
        near(case, {key: got[key] for key in exact}, exact, eager)
        way = way_of(got["log"])
        assert way == WAYS.get(case, "fused"), table(got["log"])
        request.node.user_properties.append(("way", way))


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("FSDP2")])
def test_layers_get_the_packed_stream(case, found):
    """Every layer of every step runs fused, twice where it is checkpointed; together where none is sharded alone."""
    for results in found:
        log = [choice[:3] for choice in results[case]["log"]]
        count = log.count(("attention", "forward", "cpu")) + 2 * log.count(
            ("encoder", "forward", "cpu")
        )
        assert count == 2 * STEPS * (2 if "checkpointing" in case else 1), table(log)


@pytest.mark.tool("torch distributed", "FSDP2 bf16: logits by the accuracy check")
def test_bf16(found, request):
    case = "FSDP2 bf16"
    exact = in_float64(theirs_of(CASES[case][0]))
    with torch.no_grad():
        want = exact(**many_texts()).logits
    for results in found:
        ours, theirs = (results[key]["logits"] for key in (case, f"{case}, transformers"))
        near(case, ours, want, theirs, rounded=torch.bfloat16)
        assert way_of(results[case]["log"]) == "fused", table(results[case]["log"])
    request.node.user_properties.append(("way", "fused"))
