"""Entities in tags O, B-TYPE and I-TYPE: where they stand, and how many were found.

The field reads a tag I-TYPE that follows no tag of its type in two ways: the script conlleval begins an entity there;
strict reading (seqeval's mode "strict" with IOB2) begins entities at B- only, and such a tag belongs to none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...errors import ArgumentError

Span = tuple[str, int, int]  # type, first tag, the tag after the last
_MODES = ("conlleval", "strict")


class Scores(NamedTuple):
    """precision, recall, f1: from 0 to 1, 0 where undefined. gold, predicted, right: numbers of entities."""

    precision: float
    recall: float
    f1: float
    gold: int
    predicted: int
    right: int


def spans(tags: Sequence[str], mode: str = "conlleval") -> list[Span]:
    """The entities of a sentence, in order: (type, start, stop). A bare B or I has the type "".

    Args:
        mode: "conlleval" or "strict".

    Raises:
        ArgumentError: another mode, or a tag (its index is named) that is not O, B-TYPE or I-TYPE.
    """
    if mode not in _MODES:
        raise ArgumentError("mode", " or ".join(_MODES), repr(mode))
    found: list[Span] = []
    open_at, open_type = None, ""  # an entity that has not ended
    for index, (prefix, kind) in enumerate(map(_split, tags, range(len(tags)))):
        goes_on = prefix == "I" and open_at is not None and kind == open_type
        if open_at is not None and not goes_on:
            found.append((open_type, open_at, index))
            open_at = None
        if prefix == "B" or (prefix == "I" and not goes_on and mode == "conlleval"):
            open_at, open_type = index, kind
    if open_at is not None:
        found.append((open_type, open_at, len(tags)))
    return found


def tags_of(entities: Iterable[Span], length: int) -> list[str]:
    """The IOB2 tags of a sentence of `length` words: `tags_of(spans(tags), len(tags))` makes IOB1 tags IOB2."""
    tags = ["O"] * length
    for kind, start, stop in entities:
        suffix = f"-{kind}" if kind else ""
        tags[start:stop] = ["B" + suffix, *["I" + suffix] * (stop - start - 1)]
    return tags


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], mode: str = "conlleval"
) -> tuple[Scores, dict[str, Scores]]:
    """Precision, recall and F1 of all entities together, and of each type, sorted by name.

    An entity is right when type, start and stop are.

    Args:
        gold, predicted: the tags of each sentence. mode: how both are read, as in `spans`.

    Raises:
        ArgumentError: another number of sentences, a sentence with another number of tags, or what `spans` refuses.
    """
    if len(gold) != len(predicted):
        raise ArgumentError("predicted", f"{len(gold)} sentences", str(len(predicted)))
    totals = {name: Counter() for name in ("gold", "predicted", "right")}
    for index, (first, second) in enumerate(zip(gold, predicted, strict=True)):
        if len(first) != len(second):
            raise ArgumentError(f"predicted[{index}]", f"{len(first)} tags", str(len(second)))
        sets = {"gold": set(spans(first, mode)), "predicted": set(spans(second, mode))}
        sets["right"] = sets["gold"] & sets["predicted"]
        for name, entities in sets.items():
            totals[name].update(kind for kind, _, _ in entities)
    types = sorted(totals["gold"] | totals["predicted"])
    each = {kind: _scores(*(totals[name][kind] for name in totals)) for kind in types}
    return _scores(*(count.total() for count in totals.values())), each


def _scores(gold: int, predicted: int, right: int) -> Scores:
    precision, recall = right / max(predicted, 1), right / max(gold, 1)
    f1 = 2 * right / max(gold + predicted, 1)
    return Scores(precision, recall, f1, gold, predicted, right)


def _split(tag: str, index: int) -> tuple[str, str]:
    prefix, dash, kind = tag.partition("-")
    if tag == "O" or (prefix in ("B", "I") and bool(dash) == bool(kind)):
        return prefix, kind
    raise ArgumentError(
        f"tags[{index}]", "O, B-TYPE or I-TYPE", repr(tag), "Other schemes are not read."
    )
