"""Which backends of an operation are right at some size, and how long each takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..core.weights import BertWeights
from ..dispatch.calls import Key, key_of
from ..dispatch.decisions import Decision
from ..ops._contract import CONTRACTS
from . import bounds
from .accuracy import Expected, compare
from .inputs import Case, make_gradient, make_inputs

# of a GPU; of equals the first wins
CANDIDATES = ("cuda", "cuda:cublaslt", "triton", "triton:torch", "eager")
MARGIN = 1.05  # how much faster than the one before it a backend must be
SAMPLES = 5
BUDGET_S = 0.3  # of timing a call, beyond the least number of samples


def workload(
    weights: BertWeights, tokens: int, length: int, training: bool
) -> Iterator[tuple[str, Case]]:
    """The operations of a model's encoder at a batch of `tokens` tokens in texts of one length.

    training: also the masked-LM head, and dropout.
    """
    hidden, layer = weights.hidden_size, weights.layers[0] if weights.layers else None
    lengths = (length,) * (tokens // length) + (tokens % length,) * (tokens % length > 0)
    sizes = {"lengths": lengths, "eps": 1e-12, "p": 0.1 if training else 0.0}
    vocab_size = len(weights.embeddings.word)
    yield "embedding", Case("", inner=hidden, outer=vocab_size, **sizes)
    if layer is not None:
        features, inner = layer.query.weight.shape[0], layer.inner.weight.shape[0]
        heads = layer.num_heads
        yield "qkv_projection", Case("", inner=hidden, outer=features, heads=heads, **sizes)
        yield "attention", Case("", outer=features, heads=heads, **sizes)
        yield "linear_layernorm", Case("", inner=features, outer=hidden, **sizes)
        yield "linear_gelu", Case("", inner=hidden, outer=inner, **sizes)
        yield "linear_layernorm", Case("", inner=inner, outer=hidden, **sizes)
    if training:
        yield "gelu_layernorm", Case("", inner=hidden, outer=hidden, **sizes)
        yield "masked_cross_entropy", Case("", inner=hidden, outer=vocab_size, **sizes)


def autotune(
    operation: str, direction: str, case: Case, dtype: torch.dtype, device: torch.device, save: bool = False
) -> tuple[Key, Decision | None]:  # fmt: skip
    """Check and time the backends that support a call of that size; the first stays unless another is clearly faster.

    Returns: the key of the call, and the decision; None where no backend was right.
    """
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with current, torch.no_grad(), torch.autocast(device.type, enabled=False):
        call, expected = expectation(operation, direction, case, dtype, device, save)
        rejected: dict[str, str] = {}
        runs: dict[str, Callable[[], object]] = {}
        for name in CANDIDATES:
            backend = dispatch.backends_of(operation)[name]
            product = name.partition(":")[2]
            other = not product or product in getattr(backend, "PRODUCTS", ())
            if other and backend.supports(call) is None:
                runs[name] = _named(name, call)
        for name, run in list(runs.items()):
            try:
                check(call, run(), expected)
            except Exception as error:  # whatever a kernel that does not compile here raises
                rejected[name] = _words(error)
                del runs[name]
        seconds = race(runs, device, rejected)
    key = key_of(call)
    return key, Decision(winner(seconds), seconds, rejected) if seconds else None


def _named(name: str, call: Any) -> Callable[[], object]:
    def run():
        with dispatch.use_backend(name):  # what else holds is as it is when it runs
            return dispatch.run(call)

    return run


def expectation(
    operation: str, direction: str, case: Case, dtype: torch.dtype, device: torch.device, save: bool
) -> tuple[Any, dict[str, Expected]]:
    """A call of that size, and what is expected of each of its results, by name.

    Exact is the reference in float64, allowed is what eager torch in the dtype of the product errs, and some.
    """
    contract, backends = CONTRACTS[operation], dispatch.backends_of(operation)
    inputs = make_inputs(operation, case, dtype, device)
    given = {**inputs, "save": True}
    forward = contract.forward(*(given[name] for name in contract.forward._fields))
    saved = _several(backends["reference"].forward(*forward))
    if direction == "forward":
        call = forward._replace(save=save) if "save" in forward._fields else forward
        names, like = contract.results[: None if save or not hasattr(call, "save") else 1], saved[0]
    else:
        named = {**inputs, **dict(zip(contract.results, saved, strict=True))}
        like = make_gradient(case, saved[0])
        named |= {f"d{contract.results[0]}": like, "needs": [True] * len(contract.gradients)}
        call = contract.backward(*(named[name] for name in contract.backward._fields))
        names = contract.gradients
    fp64 = {name: _cast(value, torch.float64) for name, value in inputs.items()}
    half = torch.float16 if key_of(call).dtype == "tf32" else None
    exact, peer = (
        _several(getattr(backends[name], direction)(*(_cast(value, kind) for value in call)))
        for name, kind in (("reference", torch.float64), ("eager", half))
    )
    sizes, gradients = getattr(bounds, operation)(_cast(like, torch.float64), **fp64)
    size = gradients if direction == "backward" else dict(zip(contract.results, sizes, strict=True))
    found = zip(names, exact, peer, strict=False)  # what is saved may not be asked for
    return call, {
        name: Expected(true, plain if half is None else plain.to(half), size[name])
        for name, true, plain in found
        if true is not None
    }


def check(call: Any, results: object, expected: Mapping[str, Expected]) -> None:
    """Raises AssertionError where a result of a backend is not what is expected."""
    contract = CONTRACTS[call.operation]
    names = contract.results if call.direction == "forward" else contract.gradients
    for name, result in zip(names, _several(results), strict=True):
        if name in expected:
            compare(name, result, expected[name])


def winner(seconds: Mapping[str, float]) -> str:
    """The first, unless a later one is faster by more than the margin."""
    best = next(iter(seconds))
    for name in seconds:
        if seconds[name] * MARGIN < seconds[best]:
            best = name
    return best


def race(
    runs: Mapping[str, Callable[[], object]], device: torch.device, rejected: dict[str, str]
) -> dict[str, float]:
    """The least seconds of each run, taken in turn; those that raise are rejected."""
    least: dict[str, float] = {}
    start, rounds = time.perf_counter(), 0
    while rounds < SAMPLES or (rounds < 4 * SAMPLES and time.perf_counter() - start < BUDGET_S):
        rounds += 1
        for name, run in runs.items():
            if name in rejected:
                continue
            try:
                least[name] = min(stopwatch(run, device), least.get(name, torch.inf))
            except Exception as error:  # memory may run out in the middle
                rejected[name] = _words(error)
    return {name: seconds for name, seconds in least.items() if name not in rejected}


def stopwatch(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run on a GPU, the mean of five in a row."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(5):
            run()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3 / 5


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    floating = dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def _several(found: Any) -> tuple:
    return found if isinstance(found, tuple) else (found,)


def _words(error: Exception) -> str:
    """The reason in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, AssertionError):
        return f"above tolerance: {text}"[:500]
    return f"raised {type(error).__name__}: {text}"[:500]
