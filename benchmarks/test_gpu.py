"""Every operation and the model on a GPU, bf16, forward and forward + backward; without a GPU, the predicted table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import harness
from bertfast import dispatch
from harness import costs

from . import gpu, models, predictions
from .gpu import LOADS, GpuRace
from .peers import transformers_bert
from .peers.gpu import Peer, peers
from .race import RACES, report

DTYPE = torch.bfloat16
PREDICTED = Path("build/gpu-predicted.json")
BACKENDS = ("cuda", "triton", "triton:torch")
OPERATION_NAMES = ("bertfast", *BACKENDS, "eager", "compile", "sdpa", "flash-attn")
MODEL_NAMES = ("bertfast", "sdpa", "eager", "compile", "flash-attn")
NO_GPU = "torch sees no CUDA GPU"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)


def test_predicted(benchmark):
    """Without a GPU: what each card needs at least, from the real arguments' operations and bytes."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: the figures are timed")
    what = "predicted from rooflines, untimed"
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
    for backend in BACKENDS:
        args = harness.arguments(operation, "forward", case, DTYPE, backward, "cuda")
        reason = dispatch.reasons(args)[backend]
        if reason is None:
            runners[backend] = Peer(_named(backend, harness.public(operation)), inputs)
        else:
            race.skipped[backend] = reason
    runners |= peers(operation, case, inputs, race.skipped)
    contenders = {name: _call(case, peer, backward) for name, peer in runners.items()}
    truth = _tokens(contenders["eager"](), runners["eager"])
    for name, call in contenders.items():
        for what, result in _tokens(call(), runners[name]).items():
            _compare(f"{group}: {name}: {what}", result, truth[what])
    race.run(contenders)
    return race


def _named(backend: str, function):
    def call(**inputs):
        with dispatch.use_backend(backend):
            return function(**inputs)

    return call


def _call(case: harness.Case, peer: Peer, backward: bool):
    """One sample's work, the function and its gradients where asked: returns them by name."""
    function, inputs, cells = peer
    if not backward:

        def forward():
            with torch.no_grad():
                return {"out": function(**inputs)}

        return forward
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    gradients = _gradients(case, function(**inputs), cells)

    def both():
        out = function(**{**inputs, **leaves})
        found = torch.autograd.grad(out, list(leaves.values()), gradients)
        return {"out": out, **dict(zip(leaves, found, strict=True))}

    return both


def _gradients(case: harness.Case, out, cells):
    """The same incoming gradient for every contender: 1 for a loss, none for padding, parts for a result in parts."""
    if isinstance(out, tuple):
        joined = harness.make_gradient(case, torch.stack(out, dim=1))
        return tuple(part.contiguous() for part in joined.unbind(1))
    if out.ndim == 0:
        return torch.ones_like(out)
    if cells is None:
        return harness.make_gradient(case, out.flatten(1)).view_as(out)
    gradient = torch.zeros_like(out)
    gradient[cells] = harness.make_gradient(case, out[cells])
    return gradient


def _tokens(results: dict, peer: Peer) -> dict[str, torch.Tensor]:
    """Results of a contender in one shape for all: joined, without padding."""
    if isinstance(results["out"], tuple):
        results = {**results, "out": torch.stack(results["out"], dim=1)}
    for name in ("out", "qkv"):
        if peer.cells is not None and name in results:
            results = {**results, name: results[name][peer.cells]}
    return {name: result.flatten() for name, result in results.items()}


def _compare(label: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Both round in bf16, in another order; the parity tests hold the backends to a stricter rule."""
    difference = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
    assert difference < 0.05, f"{label} differs by {difference:.2g} of the largest value"


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
        name: _step(model, batch, direction.to(DTYPE) if backward else None)
        for name, model in {"bertfast": ours, **others}.items()
    }
    truth = contenders["sdpa"]()
    for name, step in contenders.items():
        found = step()
        _compare(f"{group}: {name}", found.pop("out") * mask, truth["out"] * mask)
        for parameter, gradient in found.items():
            _compare_gradients(f"{group}: {name}: {parameter}", gradient, truth, parameter)
    race.run(contenders)
    return race


def _step(model, batch: dict, direction: torch.Tensor | None):
    """One sample's work: the last hidden states and, given their gradient, those of the parameters, by name."""
    named = {k.removeprefix("_orig_mod."): p for k, p in model.named_parameters()}

    def call():
        with torch.set_grad_enabled(direction is not None):
            out = model(**batch).last_hidden_state
        if direction is None:
            return {"out": out}
        found = torch.autograd.grad(out, list(named.values()), direction)
        return {"out": out, **dict(zip(named, found, strict=True))}

    return call


def _compare_gradients(label: str, ours: torch.Tensor, truth: dict, name: str) -> None:
    """RMS, of a typical gradient where it is 0 by calculus (a key's bias); after 12 layers in bf16 both sides err."""
    typical = torch.stack([_rms(g) for key, g in truth.items() if key != "out"]).median()
    difference = _rms(ours.float() - truth[name].float()) / torch.maximum(
        _rms(truth[name]), typical
    )
    assert difference < 0.15, f"{label} differs by {difference:.2g}"


def _rms(values: torch.Tensor) -> torch.Tensor:
    return values.float().square().mean().sqrt()


def _keep(race: GpuRace) -> None:
    RACES[race.group] = race
    gpu.write_rows(gpu.TIMED, *gpu.timed(RACES.values()))


def _row(benchmark, group: str, name: str) -> None:
    race = RACES[group]
    if name not in race.samples:
        pytest.skip(race.skipped.get(name, "not a contender of this group"))
    report(benchmark, race, name)
