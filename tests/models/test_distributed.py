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
from models.ecosystem import close, collate, gradients, pair
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


def single(name: str, lora: bool) -> tuple[list[torch.Tensor], dict, dict]:
    """transformers' class in one process: (losses by rank, gradients, weights)."""
    model = pair(name)[0].train()
    model = with_lora(model) if lora else model
    optimizer, losses = torch.optim.SGD(model.parameters(), RATE), [[], []]
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in (0, 1):
            loss = model(**collate(rows_of(name, step, rank))).loss
            (loss / 2).backward()
            losses[rank].append(loss.detach())
        optimizer.step()
    return [torch.stack(part) for part in losses], gradients(model), dict(model.named_parameters())


@pytest.fixture(scope="module")
def wanted():
    kinds = {(row[0], "LoRA" in case) for case, row in CASES.items()}
    return {kind: single(*kind) for kind in kinds}


@pytest.mark.tool("torch distributed", "{case}: losses, gradients and weights of one process")
@pytest.mark.parametrize("case", [case for case in CASES if "bf16" not in case])
def test_parity(case, found, wanted, request):
    losses, grads, weights = wanted[CASES[case][0], "LoRA" in case]
    for rank, results in enumerate(found):
        got = results[case]
        close(got["losses"], losses[rank], what="losses")
        for key, want in (("gradients", grads), ("weights", weights)):
            assert got[key].keys() == want.keys()
            for name, value in want.items():
                close(got[key][name], value, what=f"{key}: {name}")
        way = way_of(got["log"])
        assert way == WAYS.get(case, "fused"), table(got["log"])
        request.node.user_properties.append(("way", way))


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("FSDP2")])
def test_layers_get_the_packed_stream(case, found):
    """Every layer of every step runs fused, twice where it is checkpointed."""
    for results in found:
        log = results[case]["log"]
        count = sum(choice[:2] == ("attention", "forward") for choice in log)
        assert count == 2 * STEPS * (2 if "checkpointing" in case else 1), table(log)


@pytest.mark.tool(
    "torch distributed", "FSDP2 bf16: an error against float64 of at most transformers'"
)
def test_bf16(found, request):
    case = "FSDP2 bf16"
    exact = pair(CASES[case][0])[0].double()
    with torch.no_grad():
        want = exact(**many_texts()).logits
    for results in found:
        ours, theirs = (results[key]["logits"] for key in (case, f"{case}, transformers"))
        assert (ours - want).abs().mean() <= 1.1 * (theirs - want).abs().mean()
        assert way_of(results[case]["log"]) == "fused", table(results[case]["log"])
    request.node.user_properties.append(("way", "fused"))
