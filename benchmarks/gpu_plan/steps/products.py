"""The four products of a layer with what is fused to them, by every provider, as replays of a captured graph.

A graph holds the same call several times: on the same operands, which then lie in the cache, and on as many as do not
fit into it together. Beside the operations stands the product alone, as torch computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import harness
from bertfast.tuning.inputs import Case
from harness import costs

from ... import calls, gpu
from ...peers.gpu import Peer, peers
from ..device import Device
from ..results import Results

MOST = 64  # calls in a graph


def shapes(device: Device) -> dict[str, tuple[str, int, int]]:
    """name -> (operation, features of x, features of the result)."""
    hidden, inner = device.sizes.hidden, device.sizes.inner
    return {
        "qkv": ("qkv_projection", hidden, hidden),
        "attention's output": ("linear_layernorm", hidden, hidden),
        "feed-forward, first": ("linear_gelu", hidden, inner),
        "feed-forward, second": ("linear_layernorm", inner, hidden),
    }


def run(device: Device, results: Results) -> None:
    for tokens in device.sizes.tokens:
        for name, (operation, inner, outer) in shapes(device).items():
            case = Case(name, (tokens,), inner, outer, device.sizes.heads, eps=1e-12)
            with results.trying(f"{name}, {tokens} tokens"), torch.no_grad():
                _race(device, results, operation, case)


def _race(device: Device, results: Results, operation: str, case: Case) -> None:
    inputs = harness.make_inputs(operation, case, torch.bfloat16, device.tensors)
    cost = costs.cost(operation, "forward", inputs)
    operands = _copies(inputs, device.sizes.rotating)
    skipped: dict[str, str] = {}
    providers = calls.backends(operation, case, inputs, False, skipped)
    for name, reason in skipped.items():
        results.skip(f"{operation}, {name}", reason)
    providers["torch"] = peers(operation, case, inputs, {}, device.compile)["eager"]
    truth = _compared(operation, providers, "torch", results, case)
    providers = {name: providers[name] for name in truth}
    providers["torch, product alone"] = Peer(_alone(operation), inputs)
    for kind, sets in (("same", [inputs] * len(operands)), ("rotating", operands)):
        graphs = {}
        for name, peer in providers.items():
            with results.trying(f"{case.name}, {case.tokens} tokens: {name}, captured"):
                graphs[name] = device.graph(_several(peer.function, sets))[0]
        for name, found in device.race(graphs, gpu.QUEUED, len(sets)).items():
            results.add(
                "Products",
                shape=case.name,
                operation=operation,
                tokens=case.tokens,
                operands=kind,
                provider=name,
                **found,
                flops_per_s=cost.flops / found["median_us"] * 1e6,
                predicted_us=device.predicted_us(cost),
            )


def _copies(inputs: dict, limit: int) -> list[dict]:
    """The inputs and as many copies as make up the bytes of the limit, one at least."""
    tensors = [x for x in inputs.values() if isinstance(x, Tensor)]
    once = sum(x.numel() * x.element_size() for x in tensors)
    count = min(MOST, 1 + -(-limit // once))
    return [inputs] + [
        {name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()}
        for _ in range(count - 1)
    ]


def _compared(
    operation: str, providers: dict[str, Peer], truth: str, results: Results, case: Case
) -> list[str]:
    """The providers that compute what torch does."""
    right = []
    expected = calls.tokens_of(calls.call_of(case, providers[truth], False)(), providers[truth])
    for name, peer in providers.items():
        label = f"{case.name}, {case.tokens} tokens: {name}"
        with results.trying(label):
            found = calls.tokens_of(calls.call_of(case, peer, False)(), peer)
            calls.compare(label, found["out"], expected["out"])
            right.append(name)
    return right


def _several(function: Callable, sets: list[dict]) -> Callable[[], Any]:
    def call():
        for inputs in sets:
            out = function(**inputs)
        return out

    return call


def _alone(operation: str) -> Callable[..., Any]:
    if operation == "qkv_projection":
        return lambda x, wq, wk, wv, **_: [F.linear(x, weight) for weight in (wq, wk, wv)]
    return lambda x, weight, **_: F.linear(x, weight)
