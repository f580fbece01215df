"""Windows over a context that is too long for a model, for questions about it, and answers back from their logits.

A window reads [CLS] question [SEP] part of the context [SEP]. A window starts `stride` tokens of the context after the
one before. A token is in several; it counts where it has the most context on its poorer side. All functions are pure;
context tokens are numbered from 0, and offsets are the character offsets that `tokenizers` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError


class Windows(NamedTuple):
    """starts, lengths: the first context token of each window and how many it has, int64 [windows]. question: question
    tokens in each window. base: the position of the first context token in a window, question + 2."""

    starts: np.ndarray
    lengths: np.ndarray
    question: int
    base: int


class Spans(NamedTuple):
    """Answers, best first: their scores (start logit + end logit), first and last context tokens; [n] each."""

    scores: np.ndarray
    first: np.ndarray
    last: np.ndarray


def windows(
    question: int, context: int, *, max_length: int = 384, stride: int = 128, max_question: int = 64
) -> Windows:
    """The windows of a context.

    Args:
        question, context: how many tokens both have, without special ones. A context of none has one empty window.
        max_length: the most tokens of a window, special ones counted.
        stride: context tokens from the start of a window to that of the next; at most as many as a window holds are
            taken, so that no token is left out.
        max_question: the question's tokens after these are cut.

    Raises:
        ArgumentError: no room for a context token, or a stride below 1.
    """
    question = min(question, max_question)
    room = max_length - question - 3
    if room < 1:
        raise ArgumentError(
            "max_length", f"at least {question + 4}, for a token of context", repr(max_length)
        )
    if stride < 1:
        raise ArgumentError("stride", "at least 1", repr(stride))
    step = min(stride, room)
    count = 1 + max(0, -(-(context - room) // step))
    starts = np.arange(count, dtype=np.int64) * step
    return Windows(starts, np.minimum(room, context - starts), question, question + 2)


def input_ids(
    found: Windows, window: int, question: Sequence[int], context: Sequence[int], cls: int, sep: int
) -> tuple[list[int], list[int]]:
    """A window's token ids, and its segment ids: 0 up to the first [SEP], then 1.

    Args:
        question, context: ids without special tokens. cls, sep: the ids of [CLS] and [SEP].
    """
    start, length = int(found.starts[window]), int(found.lengths[window])
    ids = [cls, *question[: found.question], sep, *context[start : start + length], sep]
    return ids, [0] * found.base + [1] * (length + 1)


def owners(found: Windows) -> np.ndarray:
    """The window in which each context token has the most context: int64 [context tokens].

    The most of min(tokens before it, tokens after it); the first of equal windows. BERT's code adds 0.01 * the window's
    length, which changes nothing: only the last window may be shorter, and the ones before it win already.
    """
    count = int((found.starts + found.lengths).max())
    tokens = np.arange(count)[:, None]
    before, after = tokens - found.starts, found.starts + found.lengths - 1 - tokens
    return np.argmax(np.minimum(before, after), axis=1)  # below 0 outside a window


def answer_tokens(offsets: ArrayLike, start: int, stop: int) -> tuple[int, int] | None:
    """The first and last context tokens that share a character with [start, stop); None where no token does.

    Args:
        offsets: (start, stop) of each context token, whole numbers [tokens, 2].
    """
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    touched = np.flatnonzero(
        (places[:, 0] < stop) & (places[:, 1] > start) & (places[:, 0] < places[:, 1])
    )
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def answer_positions(found: Windows, answer: tuple[int, int] | None) -> np.ndarray:
    """Where an answer starts and ends in each window: int64 [windows, 2]; (0, 0), which is [CLS], where the window does
    not hold all of it, or there is none.

    Args:
        answer: first and last context tokens, from `answer_tokens`.
    """
    if answer is None:
        return np.zeros((len(found.starts), 2), dtype=np.int64)
    inside = (answer[0] >= found.starts) & (answer[1] < found.starts + found.lengths)
    positions = np.array(answer) - found.starts[:, None] + found.base
    return np.where(inside[:, None], positions, 0)


def best_spans(
    found: Windows,
    start_logits: Sequence[ArrayLike],
    end_logits: Sequence[ArrayLike],
    *,
    n_best: int = 20,
    longest: int = 30,
) -> Spans:
    """The best answers over all windows; a span counts in the window where its first token has the most context.

    The search is over all spans, not over pairs of the best starts and ends, as BERT's code makes it: it finds the same
    best answer or one that scores higher. Of equal scores the earlier, then the shorter span comes first.

    Args:
        start_logits, end_logits: of each window, a row with a number for each of its tokens, special ones counted.
        n_best: how many spans. longest: the most tokens of an answer.

    Raises:
        ArgumentError: not a row for each window, or not a number for each of its tokens.
    """
    rows = _rows(found, "start_logits", start_logits), _rows(found, "end_logits", end_logits)
    owner = owners(found)
    parts = [
        _spans_of(found, owner, number, start, end, n_best, longest)
        for number, (start, end) in enumerate(zip(*rows, strict=True))
    ]
    scores, first, last = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((last, first, -scores))[:n_best]
    return Spans(scores[order], first[order], last[order])


def null_score(start_logits: Sequence[ArrayLike], end_logits: Sequence[ArrayLike]) -> float:
    """The score of no answer: the least over the windows of [CLS]'s start logit + end logit. Less the best span's score
    it is what a threshold is tuned on.

    Args:
        start_logits, end_logits: as in `best_spans`.
    """
    pairs = zip(start_logits, end_logits, strict=True)
    return min(float(np.asarray(s)[0]) + float(np.asarray(e)[0]) for s, e in pairs)


def text_of(context: str, offsets: ArrayLike, first: int, last: int) -> str:
    """The original text from a context token to another; offsets as in `answer_tokens`."""
    places = np.asarray(offsets, dtype=np.int64)
    return context[places[first, 0] : places[last, 1]]


def _rows(found: Windows, name: str, logits: Sequence[ArrayLike]) -> list[np.ndarray]:
    if len(logits) != len(found.starts):
        raise ArgumentError(
            name, f"a row for each of {len(found.starts)} windows", str(len(logits))
        )
    rows = [np.asarray(row, dtype=np.float64) for row in logits]
    for number, (row, length) in enumerate(zip(rows, found.lengths, strict=True)):
        if row.shape != (found.base + length + 1,):
            expected = f"shape [{found.base + length + 1}]"
            raise ArgumentError(f"{name}[{number}]", expected, str(list(row.shape)))
    return rows


def _spans_of(
    found: Windows,
    owner: np.ndarray,
    number: int,
    start: np.ndarray,
    end: np.ndarray,
    n_best: int,
    longest: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, first, last) of the best spans of one window."""
    at, length = int(found.starts[number]), int(found.lengths[number])
    tokens = slice(found.base, found.base + length)
    starts = np.where(owner[at : at + length] == number, start[tokens], -np.inf)
    # scores[i, k]: from token i to token i + k
    ends = np.append(end[tokens], np.full(longest, -np.inf))
    ends = np.lib.stride_tricks.sliding_window_view(ends, longest)[:length]
    scores = (starts[:, None] + ends).ravel()
    order = np.argsort(-scores, kind="stable")[:n_best]
    order = order[scores[order] > -np.inf]
    first = at + order // longest
    return scores[order], first, first + order % longest
