"""Every operation and the model on a GPU, bf16, forward and forward + backward; without a GPU, the predicted table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bertfast import dispatch, testing
from bertfast.testing import costs, formulas

from . import gpu, models, predictions
from .gpu import LOADS, GpuRace
from .peers import transformers_bert
from .race import RACES, report

DTYPE = torch.bfloat16
PREDICTED = Path("build/gpu-predicted.json")
FORMS = ("cuda", "triton", "triton_matmul")
OPERATION_NAMES = ("bertfast", *FORMS, "eager", "compile", "sdpa", "flash-attn")
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
@pytest.mark.parametrize("operation", testing.OPERATIONS)
def test_operation(benchmark, operation, load, backward, name):
    group = f"{operation} {load} {'forward + backward' if backward else 'forward'}"
    if group not in RACES:
        RACES[group] = _operation_race(group, operation, load, backward)
    _row(benchmark, group, name)


def _operation_race(group: str, operation: str, load: str, backward: bool) -> GpuRace:
    case = gpu.case(operation, load)
    inputs = testing.make_inputs(operation, case, DTYPE, "cuda")
    cost = costs.cost(operation, "forward", inputs, backward)
    if backward:
        cost += costs.cost(operation, "backward", inputs)
    race = GpuRace(group, case.tokens, cost, baseline="eager")
    formula = getattr(formulas, operation)
    functions = {"bertfast": testing.public(operation), "eager": lambda **a: formula(**a)[0]}
    functions["compile"] = torch.compile(functions["eager"])
    for form in FORMS:
        args = testing.arguments(operation, "forward", case, DTYPE, backward)
        on_gpu = tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in args)
        reason = dispatch.reasons(operation, "forward", on_gpu).get(form, "no such form")
        if reason is None:
            functions[form] = _named(form, testing.public(operation))
        else:
            race.skipped[form] = reason
    for name, peer in _attention_peers(operation, case, load, race.skipped).items():
        functions[name] = peer
    contenders = {name: _call(f, inputs, backward) for name, f in functions.items()}
    truth = functions["eager"](**inputs)
    for name, function in functions.items():
        _compare(f"{group}: {name}", function(**inputs), truth)
    race.run(contenders)
    return race


def _attention_peers(operation: str, case, load: str, skipped: dict[str, str]) -> dict:
    """torch's and FlashAttention's fused attention, which compute the dense loads without padding."""
    if operation != "attention":
        skipped.update(dict.fromkeys(("sdpa", "flash-attn"), "a peer of attention only"))
        return {}
    peers, rows = {}, len(case.lengths)
    if len(set(case.lengths)) > 1:
        skipped["sdpa"] = "ragged: it would compute padding"
    else:

        def sdpa(qkv, scale, **_):
            query, key, value = qkv.unflatten(0, (rows, -1)).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(query, key, value, scale=scale)
            return out.transpose(1, 2).flatten(0, 1).flatten(1)

        peers["sdpa"] = sdpa
    try:
        from flash_attn import flash_attn_varlen_qkvpacked_func
    except ImportError:
        skipped["flash-attn"] = "flash_attn is not installed"
    else:
        peers["flash-attn"] = lambda qkv, cu_seqlens, max_seqlen, scale, **_: (
            flash_attn_varlen_qkvpacked_func(
                qkv, cu_seqlens, max_seqlen, softmax_scale=scale
            ).flatten(1)
        )
    return peers


def _named(form: str, function):
    def call(**inputs):
        with dispatch.use_backend(form):
            return function(**inputs)

    return call


def _call(function, inputs: dict, backward: bool):
    """One sample's work: the function, and its gradients where asked."""
    if not backward:

        def forward():
            with torch.no_grad():
                return function(**inputs)

        return forward
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }

    def both():
        out = function(**{**inputs, **leaves})
        return torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))

    return both


def _compare(label: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Both round in bf16, in another order; the parity tests hold the forms to a stricter rule."""
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
        RACES[group] = _model_race(group, load, backward)
    _row(benchmark, group, name)


def _model_race(group: str, load: str, backward: bool) -> GpuRace:
    lengths = LOADS[load]
    ours = models.model("base").to("cuda", DTYPE)
    batch = {name: value.cuda() for name, value in models.batch_of(lengths).items()}
    flops = models.flops_of("base", lengths) * (3 if backward else 1)
    weights = sum(weight.numel() for weight in ours.parameters()) * DTYPE.itemsize
    race = GpuRace(group, sum(lengths), costs.Cost(flops, weights * (3 if backward else 1)), "sdpa")
    peers = {
        name: transformers_bert.build(models.config("base"), ours.state_dict(), name).to(
            "cuda", DTYPE
        )
        for name in ("sdpa", "eager")
    }
    peers["compile"] = torch.compile(peers["sdpa"])
    race.skipped["flash-attn"] = "transformers loads its kernels from a hub"
    contenders = {"bertfast": ours, **peers}
    mask = batch.get("attention_mask")
    truth = ours(**batch).last_hidden_state
    for name, model in peers.items():
        found = model(**batch).last_hidden_state
        _compare(f"{group}: {name}", found if mask is None else found * mask[..., None], truth)
    race.run({name: _step(model, batch, backward) for name, model in contenders.items()})
    return race


def _step(model, batch: dict, backward: bool):
    def call():
        with torch.set_grad_enabled(backward):
            out = model(**batch).last_hidden_state
        if backward:
            out.sum().backward()
            model.zero_grad(set_to_none=True)

    return call


def _row(benchmark, group: str, name: str) -> None:
    race = RACES[group]
    if name not in race.samples:
        pytest.skip(race.skipped.get(name, "not a contender of this group"))
    report(benchmark, race, name)
