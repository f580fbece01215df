"""What one sample of a race on a GPU computes, and the comparison of the contenders that comes before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import harness
from bertfast import dispatch
from bertfast.tuning.inputs import Case

from .peers.gpu import Peer

Call = Callable[[], dict[str, Tensor]]
# backends that say what is right; `eager` of the peers is timed
DEFINITIONS = ("eager", "reference")


def backends(operation: str, case: Case, inputs: dict, backward: bool, skipped: dict) -> dict:
    """The backends of an operation that compute the case, by name, each a Peer; the reasons of the others go to
    `skipped`. A backend that is new in `dispatch.NAMES` is among them.
    """
    device = next(x.device for x in inputs.values() if isinstance(x, Tensor))
    args = harness.arguments(operation, "forward", case, torch.bfloat16, backward, device)
    reasons, found = dispatch.reasons(args), {}
    for name in dispatch.NAMES:
        product = name.partition(":")[2]
        known = dispatch.backends_of(operation)[name]
        if name in DEFINITIONS or (product and product not in getattr(known, "PRODUCTS", ())):
            continue
        if reasons[name] is None:
            found[name] = Peer(named(name, harness.public(operation)), inputs)
        else:
            skipped[name] = reasons[name]
    return found


def named(backend: str, function: Callable) -> Callable:
    """The function, computed by the backend."""

    def call(**inputs):
        with dispatch.use_backend(backend):
            return function(**inputs)

    return call


def call_of(case: Case, peer: Peer, backward: bool) -> Call:
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
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    gradients = _gradients(case, function(**inputs), cells)

    def both():
        out = function(**{**inputs, **leaves})
        found = torch.autograd.grad(out, list(leaves.values()), gradients)
        return {"out": out, **dict(zip(leaves, found, strict=True))}

    return both


def _gradients(case: Case, out, cells):
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


def tokens_of(results: dict, peer: Peer) -> dict[str, Tensor]:
    """Results of a contender in one shape for all: joined, without padding."""
    if isinstance(results["out"], tuple):
        results = {**results, "out": torch.stack(results["out"], dim=1)}
    for name in ("out", "qkv"):
        if peer.cells is not None and name in results:
            results = {**results, name: results[name][peer.cells]}
    return {name: result.flatten() for name, result in results.items()}


def compare(label: str, ours: Tensor, theirs: Tensor) -> None:
    """Both round in bf16, in another order; the parity tests hold the backends to a stricter rule."""
    difference = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
    assert difference < 0.05, f"{label} differs by {difference:.2g} of the largest value"


def step_of(model, batch: dict, direction: Tensor | None) -> Call:
    """One sample's work of a model: the last hidden states and, given their gradient, those of the parameters, by
    name.
    """
    parameters = {k.removeprefix("_orig_mod."): p for k, p in model.named_parameters()}

    def call():
        with torch.set_grad_enabled(direction is not None):
            out = model(**batch).last_hidden_state
        if direction is None:
            return {"out": out}
        found = torch.autograd.grad(out, list(parameters.values()), direction)
        return {"out": out, **dict(zip(parameters, found, strict=True))}

    return call


def compare_models(label: str, found: dict, truth: dict, mask: Tensor | float) -> None:
    """What two steps gave, real tokens only."""
    compare(label, found["out"] * mask, truth["out"] * mask)
    for name, gradient in found.items():
        if name != "out":
            _compare_gradients(f"{label}: {name}", gradient, truth, name)


def _compare_gradients(label: str, ours: Tensor, truth: dict, name: str) -> None:
    """RMS, of a typical gradient where it is 0 by calculus (a key's bias); after 12 layers in bf16 both sides err."""
    typical = torch.stack([_rms(g) for key, g in truth.items() if key != "out"]).median()
    difference = _rms(ours.float() - truth[name].float()) / torch.maximum(
        _rms(truth[name]), typical
    )
    assert difference < 0.15, f"{label} differs by {difference:.2g}"


def _rms(values: Tensor) -> Tensor:
    return values.float().square().mean().sqrt()
