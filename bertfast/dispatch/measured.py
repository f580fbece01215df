"""The measured choice: what won for a key, from this process, from the table's file, or measured now.

Several processes of one training (torch.distributed): only rank 0 measures. The others look at its file now and then
and keep to the fixed order until it holds their key. Sending the table instead would be a collective call inside an
operation, and the ranks do not meet the same keys at the same time, so it would hang. On another machine that does not
share the cache folder `bertfast tune` fills the table.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from . import forms
from .keys import Key, key_of, mark_of
from .table import Decision, Table, identity

logger = logging.getLogger("bertfast")

LIMIT_S = 60.0  # of measuring in one process; `bertfast tune` has no limit
_REREAD_S = 1.0
_ENABLED = True
_DECIDED: dict[tuple, Decision | None] = {}  # by mark; None: not to be measured, nor tried again
_ABSENT_UNTIL: dict[tuple, float] = {}  # marks that the table lacked, and when to look again
_TUNED: dict[Key, Decision | None] | None = None  # what `tuning` has measured so far
_LOCK = threading.Lock()
_spent_s = 0.0


def set_measuring(on: bool) -> None:
    """Whether the automatic choice measures and uses measurements, in the whole process; off, the fixed order holds."""
    global _ENABLED
    _ENABLED = on


def is_measuring() -> bool:
    """What `set_measuring` said last; True at first."""
    return _ENABLED


@contextlib.contextmanager
def measuring(on: bool) -> Iterator[None]:
    """`set_measuring(on)` inside the block, in the whole process."""
    before = _ENABLED
    set_measuring(on)
    try:
        yield
    finally:
        set_measuring(before)


@contextlib.contextmanager
def tuning() -> Iterator[dict[Key, Decision | None]]:
    """Measure every key that is met in the block once, whatever the table says. Yields the decisions as they come."""
    global _TUNED
    _TUNED = {}
    try:
        with measuring(True):
            yield _TUNED
    finally:
        _TUNED = None


def forget() -> None:
    """Forget what this process measured or read; files stay."""
    global _spent_s
    _DECIDED.clear()
    _ABSENT_UNTIL.clear()
    table_of.cache_clear()
    _spent_s = 0.0


@functools.cache
def table_of(device: torch.device) -> Table:
    """The table of a device."""
    return Table(identity(device))


def decision(
    operation: str, direction: str, args: tuple, found: Mapping[str, forms.Form], fixed: bool
) -> Decision | None:
    """What is known of a call, measured now if need be; None: nothing, the fixed order holds.

    Args:
        found: the operation's forms.
        fixed: the fixed order holds for this call: nothing is measured, but what was struck off stays so.
    """
    mark = mark_of(operation, direction, args)
    if _TUNED is None:
        if mark in _DECIDED:
            return _DECIDED[mark]
        if mark is None:
            return None
        known = _recall(mark)
    elif mark is None:
        return None
    else:
        known = _TUNED.get(key_of(mark))
    if known is not None or fixed or _another_rank_measures() or any(map(_unusual, args)):
        return known
    return _learn(mark, args, found)


def _another_rank_measures() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0
    )


def _unusual(value: object) -> bool:
    """A tensor of a kind that a form may not be run on besides the call itself (fake, distributed, wrapped)."""
    return isinstance(value, Tensor) and type(value) not in (Tensor, torch.nn.Parameter)


def _recall(mark: tuple) -> Decision | None:
    """From the table's file; what it lacks is looked up again after a while."""
    now = time.monotonic()
    if now < _ABSENT_UNTIL.get(mark, 0.0):
        return None
    key = key_of(mark)
    table = table_of(key.device)
    table.refresh(_REREAD_S)
    known = table.decisions.get(key.text())
    if known is None:
        _ABSENT_UNTIL[mark] = now + _REREAD_S
    else:
        _DECIDED[mark] = known
    return known


def _learn(mark: tuple, args: tuple, found: Mapping[str, forms.Form]) -> Decision | None:
    """Measure, unless another thread does, or the process has measured for long enough."""
    global _spent_s
    if (_spent_s > LIMIT_S and _TUNED is None) or not _LOCK.acquire(blocking=False):
        return None
    key, start, measured = key_of(mark), time.perf_counter(), None
    try:
        measured = _measure(key, args, found)
    except Exception as error:  # measuring must not be what stops a model
        logger.info("%s: not measured, %s: %s", key.text(), type(error).__name__, error)
    finally:
        _spent_s += time.perf_counter() - start
        _LOCK.release()
    if measured is not None:
        measured = table_of(key.device).add(key.text(), measured, replace=_TUNED is not None)
    if _TUNED is not None:
        _TUNED[key] = measured
    _DECIDED[mark] = measured
    return measured


def _measure(key: Key, args: tuple, found: Mapping[str, forms.Form]) -> Decision | None:
    ready = {}
    for name in forms.candidates(key.device.type):
        form = found.get(name)
        if form is None:
            continue
        if forms.refuses(name, form, key.direction, args, key.device.type) is None:
            ready[name] = form
    judge = importlib.import_module("bertfast.accuracy.judge")  # by name: it stands above
    question = judge.Question(key.operation, key.direction, args, key.device)
    return judge.decide(question, ready, reference=found["reference"], plain=found["torch"])
