"""Which documents are held out."""

from __future__ import annotations

import numpy as np

from ..errors import ArgumentError
from .philox import Purpose, chance, draw
from .store import Store

PARTS = ("train", "held-out")


def documents_of(store: Store, held_out: float, part: str) -> np.ndarray | None:
    """The documents of a part, sorted numbers, int64; None where it has all.

    A document is held out by its number and the share alone, whatever the seed: training and every later evaluation
    agree, and a larger share holds out all that a smaller one does.

    Raises:
        ArgumentError: the part has no document.
    """
    if held_out == 0 and part == "train":
        return None
    word, *_ = draw(0, Purpose.HELD_OUT, 0, np.arange(store.documents))
    found = np.flatnonzero(chance(word, held_out) == (part == "held-out"))
    if not found.size:
        raise ArgumentError(
            "held_out",
            f"a share that leaves a document for the part {part}",
            f"{held_out!r} of {store.documents} documents",
        )
    return found
