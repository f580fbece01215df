"""Which forms of an operation are right on an input that came up, and how long each takes: the measured dispatch.

Truth is the reference in float64, the yardstick plain torch in the dtype, the rule that of the tests (`compare`). Of a
large input only some rows are judged, from both ends: forms run on all of it, with labels and incoming gradients of
the other rows taken out, so that every result depends on the judged rows alone. Nothing is written to, nothing drawn.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch.forms import Form
from ..dispatch.keys import names
from ..dispatch.table import Decision
from ..ops._autograd import GRADIENTS, thaw
from ..ops._philox import dropout, hidden_keep
from . import RESULTS, Expected, bounds, compare

ROWS = {"cpu": 64, "cuda": 256}  # judged, at least; whole sequences where sequences matter
LONGEST = 1024  # tokens of a sequence that is judged
MARGIN = {"cpu": 1.15, "cuda": 1.05}  # how much faster than the first of the order another must be
BUDGET_S = {"cpu": 1.0, "cuda": 0.3}  # of timing all forms
ROUNDS = (2, 9)
HOPELESS = 4.0  # times the fastest: not timed again
_BY_TOKEN = (
    *("x", "residual", "dout", "dqkv", "z", "pre", "mean", "rstd", "out", "qkv", "labels"),
    *("input_ids", "inputs_embeds", "position_ids", "token_type_ids"),
)


class Inconclusive(Exception):
    """The input cannot tell right from wrong (it is not finite), or no form was right on it."""


class Question(NamedTuple):
    """One call that forms are to be judged on."""

    operation: str
    direction: str
    args: tuple
    device: torch.device

    @property
    def named(self) -> dict:
        return dict(zip(names(self.operation, self.direction), self.args, strict=True))

    @property
    def results(self) -> tuple[str, ...]:
        """The names of what a form returns."""
        backward = self.direction == "backward"
        return GRADIENTS[self.operation] if backward else RESULTS[self.operation]


def decide(question: Question, ready: Mapping[str, Form], reference: Form, plain: Form) -> Decision:
    """Judge and time the forms that support the call; the first right one stays unless another is clearly faster.

    Args:
        ready: the forms by name, those of the fixed order first.
        reference, plain: the forms that give the truth (in float64) and the yardstick.

    Raises Inconclusive, and what the reference and plain torch raise.
    """
    device = question.device.type
    current = torch.cuda.device(question.device) if device == "cuda" else contextlib.nullcontext()
    with current, torch.no_grad(), torch.autocast(device, enabled=False):
        trial = _Trial(question, reference, plain)
        struck_off: dict[str, str] = {}
        lasting = True
        for name, form in ready.items():
            try:
                trial.judge(_function(form, question.direction))
            except Inconclusive:
                raise
            except Exception as error:
                struck_off[name] = _words(error)
                lasting = lasting and not _out_of_memory(error)
            if name in struck_off and device == "cuda":
                torch.cuda.empty_cache()
        runs = {
            name: _call(_function(form, question.direction), question.args)
            for name, form in ready.items()
            if name not in struck_off
        }
        del trial
        if not runs:
            raise Inconclusive("no form was right: " + str(struck_off))
        seconds, failed = race(runs, device)
        lasting = lasting and not any(map(_out_of_memory, failed.values()))
        struck_off |= {name: _words(error) for name, error in failed.items()}
    if not seconds:
        raise Inconclusive("no form ran: " + str(struck_off))
    return Decision(winner(seconds, MARGIN[device]), seconds, struck_off, lasting)


def winner(seconds: Mapping[str, float], margin: float) -> str:
    """The first form, unless the fastest is faster by more than the margin."""
    first, best = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * margin < seconds[first] else first


def race(
    runs: Mapping[str, Callable[[], object]], device_type: str
) -> tuple[dict[str, float], dict[str, Exception]]:
    """The median seconds of each run, taken in turn, and what those raised that failed."""
    times: dict[str, list[float]] = {}
    failed: dict[str, Exception] = {}

    def time_once(name: str, repeats: int) -> None:
        try:
            times.setdefault(name, []).append(stopwatch(runs[name], device_type, repeats))
        except Exception as error:
            times.pop(name, None)
            failed[name] = error

    for name in runs:
        time_once(name, 1)
    fastest = min((found[0] for found in times.values()), default=0.0)
    alive = [name for name, found in times.items() if found[0] <= HOPELESS * fastest]
    repeats = 5 if fastest < 1e-3 else 1
    total = repeats * sum(times[name][0] for name in alive)
    rounds = min(max(int(BUDGET_S[device_type] / max(total, 1e-9)), ROUNDS[0]), ROUNDS[1])
    for _ in range(rounds):
        for name in alive:
            if name not in failed:
                time_once(name, repeats)
    return {name: statistics.median(found) for name, found in times.items()}, failed


def stopwatch(run: Callable[[], object], device_type: str, repeats: int) -> float:
    """Seconds of one run, the mean of some in a row."""
    if device_type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    start_s = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start_s) / repeats


class _Trial:
    """What to expect of one call, and the arguments that forms are run with."""

    def __init__(self, question: Question, reference: Form, plain: Form):
        self.question = question
        named = question.named
        self.rows, judged = _judged_part(question, named)
        self.args = _without_other_rows(question, named, self.rows)
        wide = {name: _widen(value) for name, value in judged.items()}
        truth = _results(_function(reference, question.direction)(*wide.values()))
        yardstick = _results(_function(plain, question.direction)(*judged.values()))
        sizes = _sizes(question, wide, truth)
        self.expected = {
            name: Expected(truth[i], yardstick[i], sizes[name])
            for i, name in enumerate(question.results)
            if truth[i] is not None and truth[i].numel() and _is_asked(question, i)
        }
        for name, (true, plain_torch, _) in self.expected.items():
            if not (true.isfinite().all() and plain_torch.isfinite().all()):
                raise Inconclusive(f"{name} is not finite")

    def judge(self, function: Callable) -> None:
        """Raises AssertionError where the form differs, and what it raises."""
        found = _results(function(*self.args))
        if self.question.device.type == "cuda":
            torch.cuda.synchronize(self.question.device)  # so that a fault is this form's
        for i, name in enumerate(self.question.results):
            if name in self.expected:
                compare(name, self._judged(name, found[i]), self.expected[name])

    def _judged(self, name: str, result: Tensor) -> Tensor:
        if self.rows is None or result.ndim == 0:
            return result
        if name == "lse":
            return result.index_select(result.ndim - 1, self.rows)
        return result.index_select(0, self.rows) if name in _BY_TOKEN else result


def _is_asked(question: Question, index: int) -> bool:
    """Whether the call wants a result: saved tensors and gradients may not be."""
    named = question.named
    if question.direction == "backward":
        return named.get("needs", [True])[index]
    return index == 0 or named.get("save", True)


def _judged_part(question: Question, named: dict) -> tuple[Tensor | None, dict]:
    """(the judged rows [R] or None for all, the arguments cut down to them)."""
    limit = ROWS[question.device.type]
    rows = None
    if question.operation == "masked_cross_entropy":
        labelled = (named["labels"] != named["ignore_index"]).nonzero().squeeze(1)
        rows = _both_ends(labelled, limit)
    elif named.get("cu_seqlens") is not None:
        named, rows = _whole_sequences(named, limit)
    elif (tokens := _tokens(named)) > limit:
        rows = _both_ends(torch.arange(tokens, device=question.device), limit)
    if rows is None:
        return None, named
    cut = {name: _cut(name, value, rows) for name, value in named.items()}
    return rows, cut


def _tokens(named: dict) -> int:
    return next(named[name] for name in ("x", "qkv", "position_ids") if name in named).shape[0]


def _both_ends(rows: Tensor, limit: int) -> Tensor:
    half = limit // 2
    return rows if rows.shape[0] <= limit else torch.cat((rows[:half], rows[-half:]))


def _whole_sequences(named: dict, limit: int) -> tuple[dict, Tensor]:
    """Sequences from both ends, the others made empty: dropout counts batch rows and places inside a sequence."""
    starts = named["cu_seqlens"].tolist()
    lengths = [stop - start for start, stop in pairwise(starts)]
    order = sorted(range(len(lengths)), key=lambda i: min(i, len(lengths) - 1 - i))
    taken = [0] * len(lengths)
    for number, i in enumerate(i for i in order if lengths[i]):
        if number < 2 or sum(taken) < limit:
            taken[i] = lengths[i]
    device = named["cu_seqlens"].device
    if max(taken, default=0) > LONGEST:
        raise Inconclusive(
            f"a sequence of {max(taken)} tokens: its matrices in float64 are too large"
        )
    ends = zip(starts[:-1], taken, strict=True)
    rows = torch.cat([torch.arange(start, start + length) for start, length in ends])
    shorter = torch.tensor([0, *taken]).cumsum(0).to(torch.int32)
    return {**named, "cu_seqlens": shorter.to(device)}, rows.to(device)


def _cut(name: str, value: object, rows: Tensor) -> object:
    if not isinstance(value, Tensor):
        return value
    if name == "lse":
        return value.index_select(value.ndim - 1, rows)
    return value.index_select(0, rows) if name in _BY_TOKEN else value


def _without_other_rows(question: Question, named: dict, rows: Tensor | None) -> tuple:
    """The whole arguments, with no label and no incoming gradient outside the judged rows."""
    if rows is None:
        return question.args
    emptied = {}
    for name, nothing in (("labels", named.get("ignore_index")), ("dout", 0), ("dqkv", 0)):
        if name in named:
            value = named[name]
            kept = torch.full_like(value, nothing, memory_format=torch.contiguous_format)
            emptied[name] = kept.index_copy_(0, rows, value.index_select(0, rows))
    return tuple({**named, **emptied}.values())


def _widen(value: object) -> object:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return thaw(value).double() if floating else value


def _results(found: object) -> tuple:
    return found if isinstance(found, tuple) else (found,)


def _function(form: Form, direction: str) -> Callable:
    return form.forward if direction == "forward" else form.backward


def _call(function: Callable, args: tuple) -> Callable[[], object]:
    return lambda: function(*args)


def _sizes(question: Question, wide: dict, truth: tuple) -> dict[str, Tensor]:
    """The size of the terms of each result (`bounds`), by name."""
    public = names(question.operation, "forward")
    size = getattr(bounds, question.operation)
    if question.direction == "forward":
        given = {name: wide[name] for name in public if name != "save"}
        sizes, _ = size(torch.ones_like(truth[0]), **given)
        return dict(zip(question.results, sizes, strict=True))
    given = {name: wide[name] for name in public if name in wide} | _forgotten(question, wide)
    return size(next(iter(wide.values())), **given)[1]


def _forgotten(question: Question, wide: dict) -> dict[str, object]:
    """Arguments of the forward that the backward is not given, from what was saved."""
    found: dict[str, object] = {}
    if question.operation == "qkv_projection":
        return {f"b{i}": wide[f"w{i}"].new_zeros(wide[f"w{i}"].shape[0]) for i in "qkv"} | {
            "num_heads": wide["dqkv"].shape[2]
        }
    if "pre" in wide:
        found["bias"] = (wide["pre"] - F.linear(wide["x"], wide["weight"])).mean(0)
    if question.operation == "linear_layernorm":
        product = F.linear(wide["x"], wide["weight"])
        p, seed, starts = wide["p"], wide["seed"], wide["cu_seqlens"]
        keep = hidden_keep(seed, p, starts, *product.shape) if p > 0 else None
        found["residual"] = wide["z"] - dropout(product, p, keep)
        found["bias"] = product.new_zeros(product.shape[1])
    if "ln_weight" in wide:
        found["ln_bias"] = torch.zeros_like(wide["ln_weight"])
        variance = _normalised(wide).var(1, unbiased=False)
        found["eps"] = float((wide["rstd"] ** -2 - variance).median().clamp(min=0))
    return found


def _normalised(wide: dict) -> Tensor:
    """What LN took in."""
    if "z" in wide:
        return wide["z"]
    if "pre" in wide:
        return F.gelu(wide["pre"])
    embeds, word = wide["inputs_embeds"], wide["word"]
    rows = embeds if word is None else word[wide["input_ids"]]
    segments = wide["segment"][wide["token_type_ids"]]
    return rows + wide["position"][wide["position_ids"]] + segments


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "enough memory" in str(error)


def _words(error: Exception) -> str:
    """The reason in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, AssertionError):
        return f"differs from torch: {text}"
    kind = "out of memory" if _out_of_memory(error) else f"raised {type(error).__name__}"
    return f"{kind}: {text}"[:500]
