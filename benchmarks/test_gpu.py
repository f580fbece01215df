"""Every operation and the model on a GPU, bf16, forward and forward + backward; without a GPU, the predicted table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import harness
from harness import costs

from . import calls, gpu, models, predictions
from .gpu import LOADS, GpuRace
from .peers import transformers_bert
from .peers.gpu import Peer, peers
from .race import RACES, report

DTYPE = torch.bfloat16
PREDICTED = Path("build/gpu-predicted.json")
BACKENDS = ("cuda", "triton", "triton:torch")
OPERATION_NAMES = ("bertfast", *BACKENDS, "eager", "compile", "sdpa", "varlen", "flash-attn")
MODEL_NAMES = ("bertfast", "sdpa", "eager", "compile", "flash-attn")
NO_GPU = "torch sees no CUDA GPU"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)


def test_predicted(benchmark):
    """Without a GPU: what each card needs at least, from what was counted of the kernels as shipped."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: the figures are timed")
    what = "predicted from counted operations, bytes and instructions, untimed"
    written = gpu.write_table(PREDICTED, what, predictions.rows())
    benchmark.group = f"{NO_GPU}; {what}: {', '.join(map(str, written))}"
    benchmark.pedantic(lambda: None, rounds=1)


@needs_gpu
@pytest.mark.parametrize("name", OPERATION_NAMES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("operation", harness.OPERATIONS)
def test_operation(benchmark, operation, load, backward, name):
    group = f"{operation} {load} {'forward + backward' if backward else 'forward'}"
    if group not in RACES:
        _keep(_operation_race(group, operation, load, backward))
    _row(benchmark, group, name)


def _operation_race(group: str, operation: str, load: str, backward: bool) -> GpuRace:
    torch._dynamo.reset()  # or torch.compile's limit of recompiled variants makes later ones eager
    case = gpu.case(operation, load)
    inputs = harness.make_inputs(operation, case, DTYPE, "cuda")
    cost = costs.cost(operation, "forward", inputs, backward)
    if backward:
        cost += costs.cost(operation, "backward", inputs)
    race = GpuRace(group, case.tokens, cost, "eager", gpu.QUEUED)
    runners = {"bertfast": Peer(harness.public(operation), inputs)}
    runners |= calls.backends(operation, case, inputs, backward, race.skipped)
    runners |= peers(operation, case, inputs, race.skipped)
    contenders = {name: calls.call_of(case, peer, backward) for name, peer in runners.items()}
    truth = calls.tokens_of(contenders["eager"](), runners["eager"])
    for name, call in contenders.items():
        for what, result in calls.tokens_of(call(), runners[name]).items():
            calls.compare(f"{group}: {name}: {what}", result, truth[what])
    race.run(contenders)
    return race


@needs_gpu
@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("load", LOADS)
def test_model(benchmark, load, backward, name):
    pytest.importorskip("transformers", reason="transformers, the peer, is not installed")
    group = f"model {load} {'forward + backward' if backward else 'forward'}"
    if group not in RACES:
        _keep(_model_race(group, load, backward))
    _row(benchmark, group, name)


def _model_race(group: str, load: str, backward: bool) -> GpuRace:
    torch._dynamo.reset()
    lengths = LOADS[load]
    ours = models.model("base", pooler=False).to("cuda", DTYPE)
    batch = {name: value.cuda() for name, value in models.batch_of(lengths).items()}
    flops = models.flops_of("base", lengths) * (3 if backward else 1)
    weights = sum(weight.numel() for weight in ours.parameters()) * DTYPE.itemsize
    race = GpuRace(group, sum(lengths), costs.Cost(flops, weights * (3 if backward else 1)), "sdpa")
    state, others = ours.state_dict(), {}
    for name in ("sdpa", "eager"):
        peer = transformers_bert.build(models.config("base"), state, name, pooler=False)
        others[name] = peer.to("cuda", DTYPE)
    others["compile"] = torch.compile(others["sdpa"])
    race.skipped["flash-attn"] = "transformers loads its kernels from a hub"
    shape = (*batch["input_ids"].shape, ours.config.hidden_size)
    mask = batch.get("attention_mask", torch.ones(shape[:2], device="cuda"))[..., None]
    direction = torch.randn(shape, device="cuda", dtype=DTYPE) * mask
    contenders = {
        name: calls.step_of(model, batch, direction.to(DTYPE) if backward else None)
        for name, model in {"bertfast": ours, **others}.items()
    }
    truth = contenders["sdpa"]()
    for name, step in contenders.items():
        calls.compare_models(f"{group}: {name}", step(), truth, mask)
    race.run(contenders)
    return race


def _keep(race: GpuRace) -> None:
    RACES[race.group] = race
    gpu.write_rows(gpu.TIMED, *gpu.timed(RACES.values()))


def _row(benchmark, group: str, name: str) -> None:
    race = RACES[group]
    if name not in race.samples:
        pytest.skip(race.skipped.get(name, "not a contender of this group"))
    report(benchmark, race, name)
